"""Chat templates as models have them, shortened."""

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|system|>You are it.<|end|>\n{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% generation %}{{ m.content }}</s>{% endgeneration %}\n"
    "{% else %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
INSTRUCT = (  # begins with BOS, and its prompt for an answer is the end of a question
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}{{ raise_exception('no system message') }}{% endif %}"
    "{% endfor %}"
)
FORGETFUL = (  # earlier turns lose their thoughts
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% if loop.last %}thinking {% endif %}"
    "{{ m.content }}</s>{% else %}<|user|>{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED_FORGETFUL = FORGETFUL.replace(
    "{{ m.content }}</s>{% else", "{% generation %}{{ m.content }}</s>{% endgeneration %}{% else"
)
