"""Whether two greedy texts are the same but for rounding.

ggml adds the products of a matrix in another order for one token than for several, so that a prompt that is read at
once, or a slot beside others, gives logits that differ in their last bits; stock llama-server shows the same. Two such
texts may part only where two tokens were equally likely but for such a difference.
"""
# Between the logarithms of the probabilities of the two most likely tokens. A wrong row in the cache moves them by
# more than ten times as much.
TIE = 0.02


def top_two(answer):
    """For each token of an answer with n_probs=2: what was said, and how much likelier than the next best it was."""
    steps = []
    for step in answer["completion_probabilities"]:
        likely = sorted((token["logprob"] for token in step["top_logprobs"]), reverse=True)
        steps.append((step["id"], likely[0] - likely[1]))
    return steps


def agreement(one, other):
    """How many tokens two lists of top_two() have in common; AssertionError if they part where nothing was a tie."""
    for i, ((said, lead), (said_there, lead_there)) in enumerate(zip(one, other)):
        if said != said_there:
            if max(lead, lead_there) > TIE:
                raise AssertionError(f"token {i} is {said} in one text and {said_there} in the other, {lead:.4f} and "
                                     f"{lead_there:.4f} likelier than the next best: rounding gives at most {TIE}")
            return i
    if len(one) != len(other):
        raise AssertionError(f"{len(one)} tokens and {len(other)}")
    return len(one)
