"""Reading configuration: YAML with line numbers, checked fields, and quantities with units."""
