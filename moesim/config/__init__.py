"""Reading what users write: YAML with line numbers, checked fields, quantities with units."""
