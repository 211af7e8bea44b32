"""Every field of a recipe, once, with its reason. Other recipes start from here and change numbers.

Three kinds of recipe: `pretrain()` one pre-training run, `corpus()` text to rows, `finetune()` a checkpoint on a task.
A field that holds several values takes a string with commas, as the command line does.
"""

from ml_collections import config_dict


def optimizer():
  return config_dict.create(
      algorithm='adamw',  # or muon: it moves the matrices of projection and blocks, AdamW the rest, at one rate
      learning_rate=5e-4,  # at the top of the schedule
      schedule='honey',  # honey (linear up, inverse square root down), linear, cosine, warmup_stable_decay, constant, or
      # in steps: epochs (down to rate / epochs), epochs_from_zero (the same after a first one at 0, as paper 2 ran)
      warmup_share=0.05,  # of all updates
      warmup_most=4000,  # updates, whatever the share says
      decay_share=0.2,  # of all updates, for warmup_stable_decay
      epochs=0,  # equal parts of the run, at whose ends alone the schedules epochs and epochs_from_zero change the rate
      beta1=0.9,  # so with the next two, of AdamW; Muon's momentum is 0.95
      beta2=0.95,
      epsilon=1e-8,
      weight_decay=0.01,
      undecayed='bias,norm,embedding',  # parameters whose path contains one of these are not decayed; '' decays all
      clip=1.0,  # global norm of the gradient; 0 leaves it alone
  )


def model():
  return config_dict.create(
      encoder='',  # package.module:Class, a Flax module of one's own in the place of ours (see model/foreign.py); '' is ours
      vocabulary=19010,  # rows of the embedding table; at least the size of the tokenizer
      embedding=32,  # E
      hidden=32,  # D
      feed_forward=64,  # F
      heads=8,  # H
      layers=1,
      length=128,  # L, the longest row
      convolutions=0,  # layers of the convolutional front-end before the blocks (paper 2); 0 leaves it out
      kernel='',  # of each of them: tokens, features, as in 3,3
      channels=0,  # that each of them gives
      convolution='paper',  # paper (BatchNorm over the batch and its pads, no residual) or mended (see model/convolution.py)
      norm='post',  # post (the paper) or pre
      positions='learned',  # learned, sinusoidal (fixed), relative (a bias per head and distance), rotary, none at all
      first_position=2,  # the number of the first learned position: 2 in RoBERTa (and paper 1), 0 in BERT (and paper 2)
      segments=2,  # rows of the segment table, of which only the first is used; 0 leaves the table out
      projection=True,  # Linear(E, D) and LayerNorm between embedding and blocks
      tied=False,  # the head shares the embedding table (E must equal D)
      activation='gelu',  # gelu (exact), gelu_tanh (an approximation of it, for models made with that), relu, silu
      dropout=0.1,
      initialization='standard',  # standard; honey, as the released code of the paper has it; bert, N(0, 0.02)
      norm_epsilon=1e-5,
      nominal_heads=8,  # the head count that the paper's FLOP formula is given; differs from heads in the logged runs
      compute='float32',  # or bfloat16, on accelerators: of matrix products and activations; all else stays float32
      remat=False,  # make the activations of a block again going backward: up to a third more work, memory of one block
      bare_projection=False,  # no LayerNorm in the projection, as in ELECTRA
      second_segment=False,  # what comes after the first </s> has the second row of the segment table, as in BERT
      short_convolution=0,  # tokens that a depthwise convolution before the blocks sees, an odd number; 0 for none
  )


def pretrain():
  """One pre-training run."""
  return config_dict.create(
      kind='pretrain',
      corpus='',  # a folder that `minilm corpus` made, or a corpus recipe, which is built into the work directory first
      corpus_on='auto',  # device: whole on each; host: in its files, and read a chunk ahead; auto: device where it fits
      subset=dict(
          rows=0,  # train on so many rows of the training split alone, the first of a fixed random order; 0: all
          tokens=0,  # or on the first rows of that order with so many tokens, pads not counted
          order=0,  # another number is another order; of one order the smaller subset is inside the larger
      ),
      seed=0,
      batch_size=256,  # rows an update
      accumulation=0,  # micro-batches an update is summed over; 0: on a CPU what stays in cache, else 1
      head_blocks=0,  # parts of a micro-batch whose logits exist at one time, at least; 0: what stays in cache
      updates=1000,
      nonfinite='stop',  # an update with a NaN or infinity is undone; then: stop, skip it, or drop-member and go on without
      model=model(),
      mask=dict(
          rate=0.15,  # share of a row's tokens that is predicted
          random=0.0,  # share of those that become a random token
          keep=0.0,  # share of those that stay as they are; the rest becomes <mask>
          special=False,  # may <s> and </s> be predicted? the released code of the paper does
          span=0,  # tokens side by side that are predicted together, as many as that; 0: each is drawn by itself
      ),
      optimizer=optimizer(),
      evaluation=dict(
          every=1000,  # updates between evaluations; one more at the end
          first=0,  # evaluations also at this update and at each doubling of it, up to `every`; 0: none before `every`
          rows=2000,  # of the validation split, the first so many
          batch_size=64,
      ),
      checkpoint=dict(
          every=1000,  # updates between saves; one more at the end
          minutes=0.0,  # save also at the end of a chunk so many minutes after the last save; 0: never
          keep=2,  # the last so many stay
          best=0,  # and, of those saved right after an evaluation, so many with the lowest loss (of members, the mean)
      ),
      log=dict(
          every=50,  # updates a line of metrics covers, and the chunk that one dispatch runs
          to='tensorboard',  # who gets the lines beside metrics.jsonl: tensorboard, wandb, json (lines on standard output)
          project='minilm',  # of W&B
          name='',  # of the run in W&B; '' is the name of the work directory
      ),
      population=dict(
          members=1,  # models that one program trains, on the same corpus
          lift='auto',  # how those of a device share it: one after another (loop), all at once (vmap), what is faster there
          seeds='',  # one a member; '' counts up from seed
          learning_rates='',  # one a member, instead of optimizer.learning_rate; so with the next ones
          weight_decays='',
          mask_rates='',
          mask_randoms='',
          mask_keeps='',
      ),
      mesh=dict(population=0, data=0, model=1),  # devices along each axis; 0 takes what divides the members, the batch
  )


def corpus():
  """Text to rows."""
  return config_dict.create(
      kind='corpus',
      documents=dict(
          sources='',  # files, globs, TFDS names or 'microworld', with commas between
          field='text',  # which column of jsonl, csv, tsv, parquet or TFDS holds the text
          split='train',  # of a TFDS source
          data_dir='',  # of a TFDS source; '' is TFDS's own place
          unit='paragraphs',  # a document of a .txt: up to an empty line (or a line, where none is empty), a 'line', a 'file'
          errors='strict',  # bytes that are not UTF-8: 'strict' stops, 'replace' goes on
          longest=10_000_000,  # characters in one document; a longer one is refused
      ),
      vocabulary=dict(
          word_list='',  # a file, one word a line or with a column 'word'; '' for none
          most_frequent=0,  # or so many of the most frequent words of the source
          counting='honey',  # what a word is: the paper's rule, or 'plain', which knows apostrophes
          passes='sentences,spans',  # which passes keep text; 'documents' keeps them whole
          sentence_words=5,  # a sentence needs more counted words than this
          span_words=110,  # words in a window
          span_stride=30,  # words between starts of windows
          span_counted=40,  # a window needs more counted words than this
      ),
      tokenizer=dict(
          path='',  # an existing SentencePiece model, instead of training one
          model='bpe',  # bpe or unigram
          size=19000,  # pieces, the five special ones included
          sweep='',  # other sizes to try on the same text: their word-split ratio and ESMS go into the manifest
      ),
      rows=dict(
          length=128,
          grouping='words',  # 'words': the paper's estimate of 1.2 tokens a word; 'tokens': fill rows exactly; 'articles': a
          # row a document, cut at its end (the second paper)
      ),
      splits=dict(validation=0.01, test=0.01),  # shares of documents, by hash
      workers=0,  # processes; 0 is one a core
  )


def finetune():
  """A checkpoint on a task, several seeds and learning rates."""
  config = config_dict.create(
      kind='finetune',
      task=dict(
          name='cola',  # a row of minilm_jax/tasks/table.py
          data_dir='',  # a TFDS data_dir
          folder='',  # or a folder of train, validation and test, each .jsonl, .csv, .tsv, .parquet or FewRel's .json
          train='',  # or such files one by one; without one for the split that is reported, a part of this one is it
          validation='',
          test='',
          fields='',  # the one or two columns of text; '' the task's
          label='label',  # the column of the label
          kind='',  # classification or regression; '' the task's
          markers=False,  # of FewRel, put marks round the two entities
          filtered=False,  # keep examples that stay inside the word list
          word_list='',  # the word list of the filter
          split='validation',  # the split that is reported; nothing is ever selected on it
          limit=0,  # use only so many training examples; 0 uses all
          per_label=0,  # or draw so many training examples of each label; 0 uses all
          per_label_reported=0,  # draw so many of each label from the split that is reported; 0 uses all
      ),
      head=dict(
          pooling='first',  # the vector of <s>, the 'mean' over tokens, or the paper's weights over 'positions'
          dropout=0.1,
          copies=1,  # heads on one encoder, each with its own start and dropout; the mean of their logits is the answer
      ),
      optimizer=optimizer(),
      seeds='0,1,2,3,4',  # a head and an order of examples each
      learning_rates='',  # tried side by side, the best on what is held out is reported; '' is optimizer.learning_rate
      batch_size=32,
      epochs=5.0,
      length=128,
      held_out=0.0,  # share of the training examples that chooses rate and epoch; 0 reports the last epoch, as the paper does
      patience=0,  # epochs without a better score on what is held out, after which a member stops; 0 never stops
      predictions=False,  # also keep what was predicted: of the reported split, and of the test split for the GLUE server
      keep=False,  # also keep each member's classifier as a folder of its own, for predict and committee; a few MB each
      lift='auto',  # how the members of a device share it: loop, vmap, or what is faster there
  )
  config.optimizer.update(learning_rate=2e-4, schedule='linear', warmup_share=0.0, beta2=0.999, weight_decay=0.0)
  return config


def get_config():
  """What `--config=configs/base.py` gives: the smallest model of the paper, without a corpus."""
  return pretrain()
