"""A rollout server for verl that samples with transformers, one request at a time."""

import asyncio
import json
import os
import threading

import ray
import torch
from verl.workers.rollout import base
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

# A folder for what tests look at, and a fault that they ask for.
LOOK, FAULT = "VERL_CPU_LOOK", "VERL_CPU_FAULT"


@ray.remote(num_cpus=0)
class Server:
    """Holds weights of its own, which the trainer must send."""

    def __init__(self, path, max_model_len, response_length, seed):
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        eos = self.model.generation_config.eos_token_id
        self.eos = set(eos if isinstance(eos, list) else [eos])
        self.max_model_len, self.response_length = max_model_len, response_length
        self.generator = torch.Generator().manual_seed(seed)
        self.lock, self.interrupted = threading.Lock(), threading.Event()
        self.version, self.asleep = 0, False

    async def generate(self, prompt_ids, sampling_params, request_id, **kwargs):
        return await asyncio.to_thread(self._sample, list(prompt_ids), dict(sampling_params))

    @torch.no_grad()
    def _sample(self, prompt_ids, params):
        room = self.max_model_len - len(prompt_ids)
        budget = min(params.get("max_tokens", self.response_length), room)
        assert budget > 0, f"{len(prompt_ids)} ids leave no room in {self.max_model_len}"
        temperature = params.get("temperature", 1.0)
        ids, logps = [], []
        with self.lock:
            cache, given = None, torch.tensor([prompt_ids])
            version = self.version
            while len(ids) < budget and not self.interrupted.is_set():
                assert not self.asleep, "asked to sample while the weights are released"
                out = self.model(input_ids=given, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                logits = out.logits[0, -1].float()
                law = torch.log_softmax(logits / (temperature or 1.0), -1)
                token = (
                    int(torch.multinomial(law.exp(), 1, generator=self.generator))
                    if temperature
                    else int(logits.argmax())
                )
                ids.append(token)
                logps.append(float(law[token]))
                if token in self.eos:
                    break
                given = torch.tensor([[token]])
            self._note("requests.jsonl", {"prompt_ids": prompt_ids, **params, "version": version})
        ended = "completed" if ids and ids[-1] in self.eos else "length"
        whole = ended == "completed" or len(ids) == budget
        return TokenOutput(
            token_ids=ids,
            log_probs=logps if params.get("logprobs") else None,
            stop_reason=ended if whole else "aborted",
            num_preempted=0,
            extra_fields={"global_steps": version},
        )

    async def load_weights(self, weights):
        """Take over all weights, unless a test wants stale ones."""
        own = self.model.state_dict()
        missing = set(own) - set(weights)
        if self.model.config.tie_word_embeddings:
            missing.discard("lm_head.weight")
        assert not missing, f"no weights for {missing}"
        if os.environ.get(FAULT) != "stale" or not self.version:
            self.model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
            self.model.tie_weights()
        if folder := os.environ.get(LOOK):
            os.makedirs(folder, exist_ok=True)
            torch.save(weights, f"{folder}/weights_{self.version}.pt")

    def _note(self, name, line):
        if folder := os.environ.get(LOOK):
            os.makedirs(folder, exist_ok=True)
            with open(f"{folder}/{name}", "a") as file:
                file.write(json.dumps(line, default=str) + "\n")

    async def set_global_steps(self, version):
        self.version = version

    async def wake_up(self, tags=None):
        self.asleep = False

    async def sleep(self):
        self.asleep = True

    async def abort_all_requests(self, *args, **kwargs):
        """Rows that are under way come back as they are, and go on later."""
        self.interrupted.set()

    async def resume_generation(self):
        self.interrupted.clear()

    async def _nothing(self, *args, **kwargs):
        pass

    clear_kv_cache = release_kv_cache = resume_kv_cache = _nothing
    start_profile = stop_profile = _nothing


def _name(replica):
    return f"verl_cpu_server_{replica}"


class Replica(RolloutReplica):
    """One server for each replica."""

    async def launch_servers(self):
        config = self.config
        server = Server.options(
            name=_name(self.replica_rank), max_concurrency=self.max_concurrency
        ).remote(
            self.model_config.path,
            config.max_model_len or config.prompt_length + config.response_length,
            config.response_length,
            config.seed + self.replica_rank,
        )
        ray.get(server.set_global_steps.remote(0))
        self.servers = [server]
        self._server_handle, self._server_address = server, _name(self.replica_rank)


class Adapter(BaseRollout):
    """What of the server lives in verl's actor."""

    def __init__(self, config, model_config, device_mesh=None, replica_rank=-1):
        super().__init__(config, model_config, device_mesh)
        size = self.config.tensor_model_parallel_size * self.config.data_parallel_size
        rank = int(os.environ["RANK"])
        self.replica_rank = rank // size if replica_rank == -1 else replica_rank
        self.leads = rank % size == 0

    @property
    def server(self):
        return ray.get_actor(_name(self.replica_rank))

    async def resume(self, tags):
        if self.leads:
            await self.server.wake_up.remote(tags=tags)

    async def release(self):
        if self.leads:
            await self.server.sleep.remote()

    async def update_weights(self, weights, wire_format="named_tensors", global_steps=None, **kw):
        assert wire_format == "named_tensors"
        found = {}
        async for name, weight in ensure_async_iterator(weights):  # all processes gather each
            found[name] = weight.detach().cpu().clone()
        if self.leads:
            if global_steps is not None:
                await self.server.set_global_steps.remote(global_steps)
            await self.server.load_weights.remote(found)


RolloutReplicaRegistry.register("verl_cpu", lambda: Replica)
base._ROLLOUT_REGISTRY[("verl_cpu", "async")] = "verl_cpu.server.Adapter"
