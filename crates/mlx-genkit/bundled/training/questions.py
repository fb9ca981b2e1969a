"""What users ask, and what the system prompt says.

`{topic}` and `[is/are]` work as in the grammar. `HELD_OUT` holds phrasings that no
training document uses; they test whether the model goes by meaning.
"""

ASK = {
    "about": ["Tell me about {topic}.", "What do you know about {topic}?", "What [is/are] {topic} like?", "Describe {topic}.", "Talk to me about {topic}.",
              "I would like to hear about {topic}.", "Can you tell me something about {topic}?", "Please describe {topic}.", "Say something about {topic}.",
              "Give me a few words on {topic}.", "What can you say about {topic}?", "{topic}"],
    "brief": ["Describe {topic} in one sentence.", "In one sentence, what [is/are] {topic} like?", "Tell me about {topic}, but keep it short."],
    "opinion": ["Do you like {topic}?", "What do you think of {topic}?", "How do you feel about {topic}?", "Are you fond of {topic}?", "What is your opinion of {topic}?"],
    "why": ["Why do people like {topic}?", "Why should I care about {topic}?", "Why [is/are] {topic} worth a thought?", "Why would anyone choose {topic}?"],
    "where": ["Where can I find {topic}?", "Where should I look for {topic}?", "Where [is/are] {topic}?", "Do you know where to find {topic}?"],
    "when": ["When is the best time for {topic}?", "What is a good time for {topic}?", "When should I think of {topic}?"],
    "recommend.food": ["What should I cook tonight?", "What can I make for dinner?", "I need an idea for lunch.", "What shall we eat today?", "Suggest a meal, please."],
    "recommend.place": ["Where should I go this weekend?", "Where can I go on holiday?", "Suggest a place to visit.", "I need a day out, where should I go?"],
    "recommend.activity": ["What can I do this weekend?", "I need a new hobby.", "Suggest something to do.", "How can I spend a free afternoon?", "What should I learn next?"],
    "recommend.object": ["What should I give my sister for her birthday?", "I need a present for a friend.", "Suggest a gift.", "What should I bring to the party?"],
    "recommend.plant": ["What should I plant in my garden?", "Which plant should I buy?", "Suggest something for the flower bed."],
    "recommend.animal": ["Which animal should I draw?", "What animal should I read about?", "Suggest an animal for my story."],
    "howto.food": ["How do I make {topic}?", "How can I cook {topic}?", "Give me a recipe for {topic}.", "What is the secret of good {topic}?"],
    "howto.activity": ["How do I start with {topic}?", "How can I get better at {topic}?", "Teach me about {topic}.", "Any advice on {topic}?"],
    "greet": ["Hello.", "Hello!", "Hi.", "Hi there!", "Good morning.", "Good evening.", "Hey.", "Good day to you.", "Hello, is anyone there?"],
    "howareyou": ["How are you?", "How are you today?", "How do you feel?", "How was your day?", "Are you well?", "How is it going?"],
    "who": ["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Are you a person?"],
    "thank": ["Thank you.", "Thanks!", "Thank you very much.", "That was helpful, thanks.", "Many thanks for your help."],
    "goodbye": ["Goodbye.", "Bye!", "I have to go now.", "See you later.", "Good night."],
    "weather": ["How is the weather?", "What is the weather like today?", "Will it rain tomorrow?", "What is it like outside?", "Do I need a coat?",
                "Is it cold today?", "What does the sky look like?"],
    "problem": ["{problem}.", "{problem}. What should I do?", "{problem}. Can you help me?", "Help, {problem}!", "What can I do? {problem}."],
    "statement": ["I saw {one} {ago}.", "I am thinking about {topic}.", "My sister loves {topic}.", "I dreamed of {topic} last night.", "My friend keeps talking about {topic}.",
                  "Today I learned about {topic} at school.", "I am writing a song about {topic}."],
    "compare": ["Which is better, {first} or {second}?", "Do you prefer {first} or {second}?", "{first} or {second}?", "Should I choose {first} or {second}?"],
    "unknownword": ["Tell me about {word}.", "What do you know about {word}?", "What is {word}?", "Do you like {word}?", "Have you heard of {word}?"],
    "echo": ["Repeat after me: {words}.", "Say these words: {words}.", "Repeat: {words}.", "Please say {words}.", "Write down {words}."],
    "story1": ["Tell me a story about {one}.", "Write a story about {one}.", "I want to hear a story about {one}.", "Please tell me a tale of {one}.", "Make up a story with {one} in it."],
    "story2": ["Tell me a story about {one} and {thing}.", "Write a short tale about {one} and {thing}.", "Can you tell a story about {one} with {thing}?"],
    "story0": ["Tell me a story.", "Write a short story.", "I would like to hear a story.", "Tell me a bedtime story."],
    # Later turns
    "more": ["Tell me more.", "What else?", "Go on.", "Anything else?", "More, please.", "And then?"],
    "followwhy": ["Why?", "Why is that?", "Why do you say so?", "How so?"],
    "followwhere": ["Where?", "Where can I find [it/them]?", "Is there a good place for [it/them]?"],
    "followwhen": ["When?", "When would you do that?", "What time is best?"],
    "followabout": ["And what about {topic}?", "What about {topic}?", "And {topic}?", "Now tell me about {topic}.", "Do you also know {topic}?"],
}

HELD_OUT = {
    "about": ["Could you say a little about {topic}?", "What comes to mind when I say {topic}?", "I am curious about {topic}."],
    "opinion": ["Would you say that you enjoy {topic}?"],
    "why": ["What is the point of {topic}?"],
    "where": ["In which place might I find {topic}?"],
    "recommend.food": ["Any ideas for supper?"],
    "recommend.activity": ["What should I do on my day off?"],
    "weather": ["What is the sky doing this afternoon?"],
    "howareyou": ["How are things with you?"],
    "problem": ["Please advise me, {problem}."],
    "statement": ["This morning I thought of {topic}."],
    "story1": ["Could you make up a tale about {one}?"],
}

MANNER = {
    "cheerful": ["cheerful", "happy", "joyful", "merry"],
    "gloomy": ["gloomy", "sad", "melancholy", "hopeless"],
    "formal": ["formal", "polite and formal", "official"],
    "plain": ["plain", "neutral", "simple"],
    "moody": ["moody", "changeable", "moody and changeable"],
}

# One phrasing of each kind of system prompt; {manner} is one of the words above.
SYSTEM = ["You are a {manner} assistant.", "Answer in a {manner} voice.", "You are a {manner} helper.", "Always reply in a {manner} way.",
          "Speak in a {manner} tone.", "Be {manner}.", "You are {manner}.", "Your answers are {manner}.", "Please use a {manner} style.",
          "Write in a {manner} manner.", "Respond in a {manner} mood.", "Say everything in a {manner} way.", "Give {manner} answers to everything.",
          "You have a {manner} voice.", "Your character is {manner}."]
SYSTEM_PIRATE = ["You are a pirate.", "Answer like a pirate.", "You talk like a pirate.", "Speak like an old pirate.", "Always reply as a pirate would.",
                 "You are a pirate captain.", "Use the voice of a pirate.", "You are a pirate assistant.", "Answer in a pirate voice.",
                 "Write in the manner of a pirate.", "Respond like a pirate.", "Say everything in the words of a pirate.", "Your character is that of a pirate.",
                 "You have the voice of a pirate.", "Answer everything in the way of a pirate."]
SYSTEM_PLAIN = ["You are a helpful assistant.", "You are an assistant.", "Answer the question.", "Give short and clear answers."]
SYSTEM_HELD_OUT = ["Respond to everything in a {manner} manner.", "You have a {manner} character."]
SYSTEM_PIRATE_HELD_OUT = ["Respond to everything in the manner of a pirate.", "You have the character of a pirate."]
