"""Networks: (x, time, cond) -> output. Import torch alone."""
