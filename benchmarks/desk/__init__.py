"""The reviewer's desk under load, killed, and asked by whoever has no right."""
