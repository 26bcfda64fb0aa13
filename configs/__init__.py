"""Data only: device presets, model presets and policies, as TOML."""
