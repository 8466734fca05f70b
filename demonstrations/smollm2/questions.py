"""Questions to learn from, and others to be shown; written for this demonstration."""

TO_LEARN_FROM = """
What is a lighthouse for?
Why do leaves turn red in autumn?
How does a bicycle stay upright?
What is the difference between a lake and a pond?
Why is bread left to rise?
What does a librarian do?
How do bees make honey?
Why do we have leap years?
What is a good way to learn a new language?
How should I store potatoes?
What is an encyclopedia?
Why do cats purr?
What makes a good teacher?
How do I calm down before an exam?
What is a glacier?
Why does iron rust?
How do trains stay on their rails?
What is the purpose of a map?
How can I wake up earlier?
Why do boats float?
What is jazz?
How do I keep a houseplant alive?
What is gravity?
Why do people wear hats?
What does an architect do?
How is paper made?
Why is the ocean salty?
What is a healthy breakfast?
How do magnets work?
What is poetry?
Why do birds migrate?
How can I save electricity at home?
What is a volcano?
Why is sleep important?
How do I write a thank-you letter?
What is a bridge made of?
Why do onions make us cry?
What does a thermometer measure?
How do I choose a good book?
What is the role of a judge?
Why does ice float on water?
How are pearls formed?
What is a compass used for?
Why do we shake hands?
How can I remember names better?
What is chess?
Why do stars twinkle?
How does a kettle know when to switch off?
What is a museum?
Why do dogs wag their tails?
How do I boil an egg?
What is inflation?
Why should I drink water?
How do farmers decide when to harvest?
What is a symphony?
Why do we dream?
How does soap work?
What is a good gift for a gardener?
Why are flamingos pink?
How do I tie a scarf?
What is the moon made of?
Why do some people snore?
How do I start a conversation?
What is a desert?
""".strip().splitlines()

HELD_OUT = """
What is a rainbow?
Why do we brush our teeth?
How do I make a cup of tea?
What is the job of a pilot?
Why is the sky blue?
How can I be a better friend?
What is a library?
Why do we need bees?
How do I stay warm in winter?
What is a river?
Why do people travel?
How does a plant grow?
""".strip().splitlines()
