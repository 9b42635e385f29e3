"""The commands of `vitadapter`, which the scripts of the same work share with it."""
