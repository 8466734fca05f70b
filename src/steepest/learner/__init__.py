"""One fused gradient step, run eagerly, compiled, as a CUDA graph, and for several members at once."""
