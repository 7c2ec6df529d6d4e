"""Look into files: findings, digests, differences and statistics as data, never printed."""
