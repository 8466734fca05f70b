"""The text of ``steepest --help``."""

USAGE = """\
usage: steepest VERB ...

  train ALGORITHM ENV [options]   train an agent; `train ppo --help` lists the options of ppo
  train ALGORITHM DATA [options]  train an agent from a dataset (cql, iql, ...), without playing
  train ... --from RUN            start from the agent of another run; with --data DATA --data-share 0.5, half from data
  train --resume RUN              resume any run from its last checkpoint
  sweep ALGORITHM ENV [options]   search settings: --search learning_rate=log:1e-5:1e-2 --study FOLDER
  evaluate RUN [options]          play whole episodes: mean, std, min, max, length; --video FILE.mp4 records them
  collect POLICY [ENV] --steps N  write what a run or a saved agent plays as a dataset; --replay writes a run's replay
  ope RUN... DATA [options]       what agents are worth, estimated from data of other policies, with intervals
  dataset show DATA [--out PNG]   what a dataset holds: returns, lengths, actions, coverage, as a table and a picture
  sft MODEL DATA [options]        fine-tune a language model on demonstrations; --resume RUN resumes
  reward MODEL DATA [options]     train a reward model on preferences
  dpo MODEL DATA [options]        train a language model on preferences directly
  rlhf ALGORITHM MODEL DATA       train a language model on prompts with a reward, by ppo, rloo or grpo
  generate MODEL [options]        answers of a language model: to a prompt, to a file of them, or in a conversation
  compare MODEL_A MODEL_B         compare language models on the same prompts: answers, reward, win rate, KL, length
  sample MODEL PROMPTS [options]  responses for people to compare; or clips of what an agent does: sample RUN --clips N
  label FILE [options]            a page in the browser on which people compare them; reward and dpo learn from FILE
  labels show|export|import FILE  what people said, as a table and as data, also of other tools
  plot RUN... [options]           learning curves of several runs and seeds in one picture
  verify [--section 1.9]          check every formula of the deep RL notes against exact solutions
  estimators [--problem NAME]     bias and variance of policy-gradient estimators against the exact gradient
  list                            algorithms and environment families

  steepest VERB --help            what a verb takes
  steepest --version

Example: steepest train ppo CartPole-v1 --total-steps 100000
"""
