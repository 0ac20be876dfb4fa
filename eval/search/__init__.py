"""Test-time search: spend tokens on many or better candidates and let step scores choose (docs/search.md)."""
