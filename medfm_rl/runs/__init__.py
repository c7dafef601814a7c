"""A run of `adapt`: its folder, its inputs, the finished run in memory, and the hashes that identify it."""
