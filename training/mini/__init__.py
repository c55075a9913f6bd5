"""How the bundled model verdict-mini is made."""
