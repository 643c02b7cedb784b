"""llama-cpp-python over the shared llama.cpp: through install(), and what is said where it cannot work."""
import json
import os
import pathlib
import textwrap
import unittest

import places
import process

PYTHON = os.environ.get("SKC_HOST_PYTHON", "")
# llama-cpp-python spends ten times as long on a token of this model as llama.cpp does.
TOKENS = 5000 if places.EVERYTHING else 1000
MODULE = places.REPOSITORY / "integrations/llama_cpp/python"


@unittest.skipUnless(PYTHON, "no llama-cpp-python: run.py --python names it")
class LlamaCppPython(unittest.TestCase):
    PRELUDE = f"""
        import ctypes, json, os, sys, warnings
        sys.path.insert(0, {str(MODULE)!r})
        TEXT = open({str(places.MODEL.parent / 'stream.txt')!r}).read()[5472:]

        def load(**options):
            import llama_cpp
            # llama.cpp's programs load ggml's backends at their start.
            lib = os.path.join(os.path.dirname(llama_cpp.__file__), "lib")
            ctypes.CDLL(lib + "/libggml.so").ggml_backend_load_all_from_path(lib.encode())
            options = dict(n_threads=1, n_threads_batch=1, n_batch=64, verbose=False) | options
            return llama_cpp.Llama({str(places.MODEL)!r}, **options)

        def complete(llm, prompt, tokens):
            # Greedy, and never ended by the model itself.
            answer = llm.create_completion(prompt, max_tokens=tokens, temperature=0, logit_bias={{2: -100.0}})
            return dict(text=answer["choices"][0]["text"], end=answer["choices"][0]["finish_reason"], **answer["usage"])
    """

    def run_python(self, program, **options):
        """The JSON of the last line that a program prints, and what it wrote to stderr."""
        env = options.pop("env", process.environment(preload=False))
        env.setdefault("SINKCACHE_LLAMA_LIBRARY", str(places.LIBRARY))
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        env["TOKENS"] = str(TOKENS)
        code, out, err = process.run([PYTHON, "-c", textwrap.dedent(self.PRELUDE) + textwrap.dedent(program)], env)
        self.assertEqual(code, 0, out + err)
        return json.loads(out.splitlines()[-1]), err

    def test_stock_ends_at_its_context(self):
        answer, _ = self.run_python("""
            print(json.dumps(complete(load(n_ctx=256), TEXT[:100], 5000)))
        """)
        self.assertLess(answer["completion_tokens"], 200)

    def test_install(self):
        answers, _ = self.run_python("""
            import sinkcache_llama
            assert not sinkcache_llama.is_installed()
            sinkcache_llama.install(n_sink=4, window=252)
            assert sinkcache_llama.is_installed()
            llm = load(n_ctx=20000)
            assert llm.n_ctx() == 20000, llm.n_ctx()
            first = complete(llm, TEXT[:600], int(os.environ["TOKENS"]))
            # It goes on where it was: all but the last tokens are in the cache.
            more = complete(llm, TEXT[:600] + first["text"] + " And", 12)
            llm.reset()
            fresh = complete(llm, TEXT[:600] + first["text"] + " And", 12)
            print(json.dumps([first, more, fresh]))
        """)
        first, more, fresh = answers
        self.assertEqual((first["completion_tokens"], first["end"]), (TOKENS, "length"))
        self.assertEqual(more["text"], fresh["text"])

    def test_it_is_the_text_of_the_server(self):
        """Of what llama-completion prints with the library preloaded."""
        answer, _ = self.run_python("""
            import sinkcache_llama
            sinkcache_llama.install(n_sink=4, window=252)
            # The whole prompt in one batch, as the program reads it.
            print(json.dumps(complete(load(n_ctx=20000, n_batch=512), TEXT[:200], 1000)))
        """)
        code, out, err = process.run(
            [places.PROGRAMS / "llama-completion", "-m", places.MODEL, "-t", 1, "-tb", 1, "-c", 256, "-n", 1000,
             "-no-cnv", "--no-display-prompt", "--ignore-eos", "--temp", 0, "-p", places.TEXT[:200]],
            process.environment({"window": 252}))
        self.assertEqual(code, 0, err)
        self.assertEqual(answer["text"][:900], out[:900])

    def test_functions_that_were_imported_before(self):
        replaced, _ = self.run_python("""
            import llama_cpp, llama_cpp.llama_cpp as low, types
            mine = sys.modules["mine"] = types.ModuleType("mine")
            mine.llama_decode = llama_cpp.llama_decode
            import sinkcache_llama
            sinkcache_llama.install(window=252)
            where = [sinkcache_llama._file_of(f).name for f in (mine.llama_decode, llama_cpp.llama_decode,
                                                                low.llama_decode, low.llama_memory_seq_rm)]
            kept = sinkcache_llama._file_of(low.llama_tokenize).name
            print(json.dumps([where, kept, low.llama_decode.argtypes == llama_cpp.llama_decode.argtypes]))
        """)
        self.assertEqual(replaced[0], [places.LIBRARY.name] * 4)
        self.assertIn("libllama.so", replaced[1])

    def test_settings_that_are_wrong(self):
        texts, _ = self.run_python("""
            import sinkcache_llama
            texts = []
            for settings in (dict(window=0), dict(window=-5), dict(window="252"), dict(window=252, n_sink=-1),
                             dict(window=252, kv_dtype="q5"), dict(window=252, kv_dtype="f16/"),
                             dict(window=252, unsupported="maybe"), dict(window=252, length=0),
                             dict(window=252, max_rewind=1.5), dict(window=True)):
                try:
                    sinkcache_llama.install(**settings)
                    texts.append("accepted")
                except ValueError as error:
                    texts.append(str(error))
            try:
                sinkcache_llama.install(window=252, library="/nowhere/libsinkcache_llama.so")
            except FileNotFoundError as error:
                texts.append(str(error))
            import llama_cpp
            stock = os.path.join(os.path.dirname(llama_cpp.__file__), "lib", "libllama.so")
            for other in (stock, sinkcache_llama._file_of(ctypes.CDLL(None).printf)):
                try:
                    sinkcache_llama.install(window=252, library=other)
                    texts.append("accepted")
                except ValueError as error:
                    texts.append(str(error))
            assert not sinkcache_llama.is_installed()
            print(json.dumps(texts))
        """)
        for text in texts:
            self.assertRegex(text, "allowed are|/nowhere/libsinkcache_llama.so|is not libsinkcache_llama.so")
        self.assertIn("window is '252'", texts[2])

    def test_a_context_that_is_no_longer_than_the_window(self):
        _, err = self.run_python("""
            import sinkcache_llama
            sinkcache_llama.install(window=2044)
            load(n_ctx=512)
            print("null")
        """)
        self.assertIn("n_ctx=512 is the length of the longest conversation", err)

    def test_settings_may_change(self):
        texts, _ = self.run_python("""
            import sinkcache_llama
            texts = []
            for window in (252, 60, 252):
                sinkcache_llama.install(window=window)
                texts.append(complete(load(n_ctx=20000), TEXT[:600], 300)["text"])
            print(json.dumps(texts))
        """)
        self.assertEqual(texts[0], texts[2])
        self.assertNotEqual(texts[0], texts[1])

    def test_shim(self):
        """A libllama.so that finds the library's functions first: the Python program is not changed."""
        env = process.environment({"window": 252, "length": 20000}, preload=False)
        env["LLAMA_CPP_LIB_PATH"] = str(places.LIBRARY.parent / "shim")
        env["LD_LIBRARY_PATH"] = str(places.PROGRAMS)
        program = """
            answer = complete(load(n_ctx=20000), TEXT[:600], int(os.environ["TOKENS"]))
            print(json.dumps(answer))
        """
        shim, _ = self.run_python(program, env=env)
        self.assertEqual((shim["completion_tokens"], shim["end"]), (TOKENS, "length"))
        installed, _ = self.run_python("""
            import sinkcache_llama
            sinkcache_llama.install(window=252)
        """ + program)
        self.assertEqual(shim["text"], installed["text"])

    def test_install_over_the_shim(self):
        env = process.environment(preload=False)
        env["LLAMA_CPP_LIB_PATH"] = str(places.LIBRARY.parent / "shim")
        env["LD_LIBRARY_PATH"] = str(places.PROGRAMS)
        answer, _ = self.run_python("""
            import sinkcache_llama
            sinkcache_llama.install(window=252, length=20000)
            print(json.dumps(complete(load(n_ctx=20000), TEXT[:100], 500)))
        """, env=env)
        self.assertEqual(answer["completion_tokens"], 500)

    def test_plain_preloading_is_said_to_have_no_effect(self):
        env = process.environment({"window": 252})
        answer, err = self.run_python("""
            print(json.dumps(complete(load(n_ctx=256), TEXT[:100], 5000)))
        """, env=env)
        self.assertLess(answer["completion_tokens"], 200)
        self.assertRegex(err, "sinkcache: .*install")
        answer, err = self.run_python("""
            import sinkcache_llama
            sinkcache_llama.install(window=252)
            print(json.dumps(complete(load(n_ctx=20000), TEXT[:100], 500)))
        """, env=process.environment({"window": 252}))
        self.assertEqual(answer["completion_tokens"], 500)
        self.assertIn("is in LD_PRELOAD, which does not reach llama-cpp-python", err)


if __name__ == "__main__":
    unittest.main()
