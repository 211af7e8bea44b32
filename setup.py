"""Name, requirements and command of the package."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).resolve().parent
# The version is read as text, because an import needs the requirements.
VERSION = re.search(
  r"^__version__ = '(.+)'$", (HERE / 'minilm_jax/__init__.py').read_text(encoding='utf-8'), re.M
).group(1)
README = HERE / 'README.md'

setuptools.setup(
  name='minilm_jax',
  version=VERSION,
  description='A laboratory for language models of 1-20 million parameters, in JAX and Flax',
  long_description=README.read_text(encoding='utf-8') if README.exists() else '',
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  classifiers=[
    'Intended Audience :: Science/Research',
    'Programming Language :: Python :: 3',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
  python_requires='>=3.11',
  # The wheel contains the recipes, so that a recipe elsewhere can import `configs.base`.
  packages=setuptools.find_packages(include=['minilm_jax', 'minilm_jax.*', 'configs', 'configs.*']),
  package_data={'configs.examples': ['own_task.csv']},
  entry_points={'console_scripts': ['minilm = minilm_jax.cli.main:main']},
  # launch/lowest.sh tests the lower bounds; launch/audit.sh looks for known vulnerabilities.
  install_requires=[
    'absl-py>=2.1',
    'chex>=0.1.90',
    'etils[epath]>=1.9.1',
    'flatbuffers>=23.5.26',  # jax.export needs it, but JAX does not require it
    'flax>=0.12.8',
    'jax>=0.10.0',
    'jaxtyping>=0.3.0',
    'matplotlib>=3.9',
    'ml-collections>=1.0',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.0',
    'plotext>=6.1.0',
    'protobuf>=5.28.3',  # reads SentencePiece models for an export
    'rich>=13.7',
    'scipy>=1.14',
    'sentencepiece>=0.2.0',
    'tensorboardX>=2.6.2.2',
  ],
  extras_require={
    # `minilm corpus --beam`. Beam needs protobuf below 7, and sentencepiece 0.2.3 needs 7.
    'beam': ['apache-beam>=2.77', 'sentencepiece<0.2.3'],
    # One NVIDIA GPU. JAX includes CUDA; launch/gpu.sh chooses the version for the driver.
    'cuda': ['minilm_jax[data]', 'jax[cuda13]'],
    'cuda12': ['minilm_jax[data]', 'jax[cuda12]'],
    'cuda13': ['minilm_jax[data]', 'jax[cuda13]'],
    # Reads .parquet, .zst and data sets of TFDS. The extra is a fifth of an installation on a
    # laptop, and text and tables do not need it. The extras for accelerators include it.
    'data': [
      'array_record>=0.5; platform_system == "Linux"',
      'importlib_resources>=6.0',  # tensorflow-datasets imports it, but does not require it
      'pyarrow>=17.0',
      'tensorflow-datasets>=4.9.10',  # data_source needs no TensorFlow
    ],
    'gcs': ['etils[epath-gcs]'],  # paths that begin with gs://
    # `minilm import` of tokenizers and weights, and comparisons with Hugging Face's RoBERTa and
    # Trainer, which needs accelerate.
    'hf': [
      'accelerate>=1.1',
      'safetensors>=0.4.3',
      'tokenizers>=0.22',
      'torch>=2.4',
      'transformers>=4.57',
    ],
    # Upper bounds, because newer formatters and type checkers may require other code.
    'check': ['minilm_jax[test]', 'basedpyright>=1.40,<1.41', 'ruff>=0.17,<0.18'],
    'docs': [
      'mkdocs>=1.6,<2',
      'mkdocs-jupyter>=0.25',
      'mkdocs-material>=9.6',
      'mkdocstrings[python]>=0.29',
    ],
    'completion': ['shtab>=1.10.0'],  # `minilm completion`
    # `minilm preflight` for NVIDIA GPUs: the compiler, without the libraries of a run.
    'preflight-cuda': ['jax[cuda12-local]', 'nvidia-cuda-nvcc-cu12>=12.6.85'],
    'peers': ['torch>=2.4'],  # `minilm bench --compare_with=torch`
    'test': [
      'minilm_jax[data]',
      'beartype>=0.20',
      'hypothesis>=6.100',
      'ipykernel>=6.29',
      'nbclient>=0.10',
      'pytest>=8.0',
      'pytest-xdist>=3.6.1',
      'safetensors>=0.4.3',
      'scikit-learn>=1.5',
      'setuptools>=65.5',
      'shtab>=1.10.0',
      'zstandard>=0.22',
    ],
    'tpu': ['minilm_jax[data]', 'jax[tpu]', 'etils[epath-gcs]'],
    'wandb': ['wandb>=0.31'],  # log.sinks=wandb
  },
)
