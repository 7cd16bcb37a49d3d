from bench.rounds.ours import run, show
import sys
print(show(run(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
