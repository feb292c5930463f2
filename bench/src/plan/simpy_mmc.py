"""M/M/5 of load 0.8 with SimPy: prints events (arrivals and ends of service) and seconds."""
import json
import random
import sys
import time

import simpy


def main(seconds):
    rng = random.Random(1)
    env = simpy.Environment()
    servers = simpy.Resource(env, capacity=5)
    served = 0
    in_system = 0.0

    def customer():
        nonlocal served, in_system
        came = env.now
        with servers.request() as turn:
            yield turn
            yield env.timeout(rng.expovariate(1.0))
        served += 1
        in_system += env.now - came

    def source():
        while True:
            yield env.timeout(rng.expovariate(4.0))
            env.process(customer())

    env.process(source())
    begun = time.perf_counter()
    env.run(until=seconds)
    took = time.perf_counter() - begun
    print(json.dumps({"work": 2 * served, "seconds": took, "mean": in_system / served}))


main(float(sys.argv[1]))
