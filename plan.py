"""What a training step costs, without the hardware: for now the peak table and the FLOP formula."""

# Dense bf16 FLOP/s of one device, by what JAX calls it (vendors' data sheets).
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12, "TPU v6": 918e12}

FLOPS_FORMULA = "6 * matmul weights + 6 * L * T * N * H a token (causal attention counted half)"


def peak_flops(device_kind):
    """Peak FLOP/s of one device, or None where it is not known (a CPU)."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)
