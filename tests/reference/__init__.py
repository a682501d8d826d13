"""What every metric should be: float64 numpy, no code shared with mcr_lens or TransformerLens."""
