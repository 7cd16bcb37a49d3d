"""Fault tests: whatever is killed, cut or filled up, the history that is left obeys the model of the round."""
