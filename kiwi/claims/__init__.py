"""Who carries which address: the claim store."""
