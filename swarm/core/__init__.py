"""What all else stands on: errors, status bits, tables of settings, names that files may give, rounding."""
