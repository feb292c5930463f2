"""M/M/5 of load 0.8 with Ciw: prints events (arrivals and ends of service) and seconds."""
import json
import sys
import time

import ciw


def main(seconds):
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Exponential(rate=4.0)],
        service_distributions=[ciw.dists.Exponential(rate=1.0)],
        number_of_servers=[5],
    )
    ciw.seed(1)
    simulation = ciw.Simulation(network)
    begun = time.perf_counter()
    simulation.simulate_until_max_time(seconds)
    records = simulation.get_all_records()
    took = time.perf_counter() - begun
    mean = sum(it.waiting_time + it.service_time for it in records) / len(records)
    print(json.dumps({"work": 2 * len(records), "seconds": took, "mean": mean}))


main(float(sys.argv[1]))
