//! What was typed (flags, environment, TOML) to what the parts need.
