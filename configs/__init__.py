"""Data only: device presets and model presets, as TOML."""
