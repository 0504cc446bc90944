from bench.decisions.running import main

main()
