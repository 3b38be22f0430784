"""The usual faults and the usual nets, once more, on nets of other makes."""
