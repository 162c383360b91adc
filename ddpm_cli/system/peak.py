"""How much a device could compute at most, to set beside what it does."""

# TFLOP/s of dense matrix products, from the vendors' data sheets: (bf16 and fp16 with sums in fp32, tf32, fp32). The
# first name that a device's name contains counts, so longer ones stand before their beginnings.
_PEAKS = {
    "B200": (2250.0, 1125.0, 75.0),
    "H200": (989.4, 494.7, 66.9),
    "H100 PCIe": (756.0, 378.0, 51.2),
    "H100 NVL": (835.5, 417.5, 60.0),
    "H100": (989.4, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "A10G": (70.0, 35.0, 35.0),
    "A10": (125.0, 62.5, 31.2),
    "L40S": (362.1, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71.0, 35.6, 35.6),
    "V100": (125.0, 15.7, 15.7),
    "T4": (65.0, 8.1, 8.1),
}


def peak_tflops(device_name: str, precision: str) -> float | None:
    """TFLOP/s of the device called so in this precision; None for one that is not in the table."""
    for name, (half, tf32, fp32) in _PEAKS.items():
        if name in device_name:
            return {"bf16": half, "fp16": half, "tf32": tf32, "fp32": fp32}[precision]
    return None
