"""Read-ME: a dense model refactored into experts, with one router that is decoupled from it."""
