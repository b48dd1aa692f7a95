"""The locality audit: finds what each update depends on."""
