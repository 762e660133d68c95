"""An optimizer written from a blank file (README.md)."""
