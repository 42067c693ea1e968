"""What runs: the graph, the flows that hand it sources and sinks, and the command line."""
