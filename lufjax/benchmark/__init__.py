"""How fast the engine is, beside the C program, and what an event costs."""
