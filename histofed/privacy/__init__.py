"""What bounds one hospital's influence on the global model; numpy only, in the agent's child process."""
