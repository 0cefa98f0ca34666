"""Code that the compiled engines share: explicit SIMD vectors, loops over rows, working space."""
