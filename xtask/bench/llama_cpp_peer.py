"""llama.cpp through its own C interface: a batch in, logits out, the best token by numpy."""

import ctypes
import json
import os
import sys

import llama_cpp
import numpy

import _peer


class Model:
    def __init__(self, path: str, threads: int, columns: int):
        llama_cpp.llama_backend_init()
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = columns
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def feed(self, tokens: list[int]) -> int:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            sys.exit("llama.cpp cannot decode")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(numpy.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def generate(self, ids: list[int], new_tokens: int, on_token) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        token = self.feed(ids)
        on_token(token)
        for _ in range(new_tokens - 1):
            token = self.feed([token])
            on_token(token)


def main() -> None:
    task = json.loads(sys.argv[1])
    columns = max(len(task["prompt"]) + task["new_tokens"], len(task["prefill"])) + 8
    model = Model(task["model"], int(os.environ["OMP_NUM_THREADS"]), columns)
    measured = _peer.measure_generate(task, lambda *request: _peer.timed(Model.generate, model, *request))
    measured["versions"] = {"llama.cpp (llama-cpp-python)": llama_cpp.__version__}
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
