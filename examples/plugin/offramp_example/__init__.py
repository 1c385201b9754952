"""A method, an exit structure, a family of networks and a data source for offramp."""
