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
PHI = (  # EOS where no answer is asked for
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
MOVED = (  # the system message is in the last question, as Mistral's
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if messages[0].role == 'system' and m == "
    "(messages | selectattr('role', 'equalto', 'user') | list)[-1] %}{{ messages[0].content }} {% endif %}{{ m.content }} "
    "[/INST]{% elif m.role == 'assistant' %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
FORGETFUL = (  # earlier turns lose their thoughts, as Qwen 3's
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% if loop.last %}thinking {% endif %}"
    "{{ m.content }}</s>{% else %}<|user|>{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED_FORGETFUL = FORGETFUL.replace(
    "{{ m.content }}</s>{% else", "{% generation %}{{ m.content }}</s>{% endgeneration %}{% else"
)
# functions and calls: one JSON object for each call, or a JSON list of all
TOOLS = (
    "{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}{% endfor %}</s>\n{% endif %}{% for m in messages %}"
    "<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL_TOOLS = TOOLS.replace("{{ m.content }}", "{{ 'thinking ' if m.role == 'assistant' and loop.last }}{{ m.content }}")
LISTED = (
    "{% if tools %}<|tools|>{{ tools | tojson }}</s>\n{% endif %}{% for m in messages %}<|{{ m.role }}|>"
    '{% if m.tool_calls %}<|call|>[{% for c in m.tool_calls %}{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}{{ '' if loop.last else ', ' }}{% endfor %}]{% else %}{{ m.content }}{% endif %}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
