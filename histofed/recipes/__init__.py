"""What can be trained: each recipe is one module here, and agent, aggregator and transport know only the contract."""
