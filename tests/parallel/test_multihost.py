"""One model over the devices of two processes: the results of each, and their agreement."""

from tests.support.hosts import two_processes

SCRIPT = """
import json, sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from omni_jax import Omni
from omni_jax.engine.continuous import Item, _Ahead
from omni_jax.parallel.multihost import HostGroup, to_host

own = jax.process_index()
omni = Omni.load(sys.argv[3], mesh="data=2,expert=2,model=2", speech=False)
hosts = HostGroup.of(omni.parts)
weight = omni.parts.thinker.embedding.table[...]
whole, near = to_host((weight, np.arange(3)))
facts = {"here": weight.is_fully_addressable, "fetched": float(np.abs(whole).sum()), "near": near.tolist()}
facts |= {"group": [hosts.number, hosts.groups, hosts.first, hosts.alone]}
for length in (1, 252, 253, 5000):
    facts[f"of {length}"] = [len(said) for said in hosts.gather(bytes([own + 1]) * (length + own))]
facts["first"] = hosts.by_first(lambda: {"of": own})


def fault_of(action):
    try:
        action()
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def wrong(error):
    raise error


def broken():
    yield Item(0, None, "a fault")
    if own:
        raise OSError("a torn file")


facts["faults"] = [fault_of(lambda: hosts.by_first(lambda: wrong(kind("no")))) for kind in (ValueError, OSError, KeyError)]
items = (Item(number, None, "a fault") for number in range(1 + own))
facts["unlike"] = fault_of(lambda: _Ahead(items, 4, 4, hosts).next_item(wait=True))
facts["stopped"] = fault_of(lambda: _Ahead(broken(), 4, 4, hosts).next_item(wait=True))
events = list(omni.stream([{"role": "user", "content": "Hi"}], thinker_max_new_tokens=6, thinker_do_sample=False))
facts["text"], facts["tokens"] = "".join(event.text for event in events), events[-1].reply.tokens
there = Mesh(np.array([device for device in jax.devices() if device.process_index != own]), ("model",))
facts["elsewhere"] = fault_of(lambda: Omni.load(sys.argv[3], mesh=there))
print()
print(json.dumps(facts))
"""


def test_two_processes_share_results_and_decisions(tiny, writer, tmp_path):
    first, second = two_processes(SCRIPT, tmp_path, tiny, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert (first.pop("group"), second.pop("group")) == ([0, 1, True, False], [0, 1, False, False])
    assert "read different inputs" in first["unlike"]
    assert second.pop("stopped") == "OSError: a torn file"
    told = "RetryableError: on another host that has the model together with this one: a torn file"
    assert first.pop("stopped") == told
    assert first.pop("faults") == ["ValueError: no", "OSError: no", "KeyError: 'no'"]
    assert second.pop("faults") == ["UserError: no", "RetryableError: no", "RuntimeError: KeyError: 'no'"]
    assert first == second
    assert not first["here"]
    assert first["near"] == [0, 1, 2]
    assert [first[f"of {length}"] for length in (1, 252, 253, 5000)] == [[1, 2], [252, 253], [253, 254], [5000, 5001]]
    assert first["first"] == {"of": 0}
    assert first["elsewhere"].startswith("ValueError: mesh: none of its devices is of this host")
    expected = writer.generate([{"role": "user", "content": "Hi"}], thinker_max_new_tokens=6, thinker_do_sample=False)
    assert (first["text"], first["tokens"]) == (expected.text, expected.tokens)
