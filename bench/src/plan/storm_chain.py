"""The long-run share of full states of a model in PRISM's language, with Storm: prints states, seconds and the share."""
import json
import sys
import time

import stormpy


def main(file):
    begun = time.perf_counter()
    program = stormpy.parse_prism_program(file, prism_compatibility=True)
    properties = stormpy.parse_properties('LRA=? [ "full" ]', program)
    model = stormpy.build_model(program, properties)
    result = stormpy.model_checking(model, properties[0])
    share = result.get_value(model.initial_states[0])
    took = time.perf_counter() - begun
    print(json.dumps({"work": model.nr_states, "seconds": took, "mean": share}))


main(sys.argv[1])
