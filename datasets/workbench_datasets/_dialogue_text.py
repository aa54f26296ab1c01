"""The closed vocabularies and our own wording behind :mod:`workbench_datasets.dialogues`."""

from __future__ import annotations

# fmt: off
GROCERIES = (
    "apples", "bananas", "pears", "plums", "grapes", "lemons", "oranges", "cherries", "peaches", "melons",
    "berries", "figs", "carrots", "onions", "potatoes", "tomatoes", "cabbage", "spinach", "lettuce", "pumpkin",
    "garlic", "ginger", "beans", "lentils", "peas", "corn", "rice", "pasta", "noodles", "flour", "oats", "bread",
    "butter", "cheese", "milk", "cream", "yogurt", "eggs", "honey", "sugar", "salt", "pepper", "vinegar", "mustard",
    "olives", "almonds", "walnuts", "raisins", "chocolate", "biscuits", "coffee", "tea", "juice", "cocoa", "soup",
    "salmon", "tuna", "shrimp", "chicken", "bacon", "ham", "beef", "candles", "soap", "matches", "napkins",
)
# fmt: on

# Every line: what the thing is asked for, the answer. Wrong options are answers to other lines.
QUESTIONS: tuple[tuple[str, str], ...] = (
    ("what do you cut paper with?", "scissors"),
    ("what do you open a locked door with?", "a key"),
    ("what do you write with on a blackboard?", "chalk"),
    ("what keeps the rain off your head?", "an umbrella"),
    ("what do you drive a nail with?", "a hammer"),
    ("what do you sweep the floor with?", "a broom"),
    ("what do you eat porridge with?", "a spoon"),
    ("what tells you the time on a wall?", "a clock"),
    ("what do you sleep on at night?", "a bed"),
    ("what do you look into to see your face?", "a mirror"),
    ("what shows you where north is?", "a compass"),
    ("what do you sew cloth with?", "a needle"),
    ("what do you light a dark cellar with?", "a lamp"),
    ("what do you boil water in?", "a kettle"),
    ("what do you dig a hole with?", "a spade"),
    ("what carries you over a lake?", "a boat"),
    ("what does a farmer plough a field with?", "a tractor"),
    ("what do you stick a stamp on?", "a letter"),
    ("what do you climb to reach the roof?", "a ladder"),
    ("what do you paint a picture with?", "a brush"),
    ("who repairs broken teeth?", "a dentist"),
    ("who bakes for the whole village?", "a baker"),
    ("who brings letters to the house?", "a postman"),
    ("who teaches children to read?", "a teacher"),
    ("who puts out a burning house?", "a fireman"),
    ("who looks after sick people?", "a nurse"),
    ("who flies an airplane?", "a pilot"),
    ("who cuts your hair?", "a barber"),
    ("who catches thieves?", "a policeman"),
    ("who grows wheat and keeps cows?", "a farmer"),
    ("who mends old shoes?", "a cobbler"),
    ("who plays tricks in the circus?", "a clown"),
    ("which animal gives us wool?", "a sheep"),
    ("which animal says meow?", "a cat"),
    ("which animal barks at strangers?", "a dog"),
    ("which animal has a long trunk?", "an elephant"),
    ("which animal clucks on the farm?", "a hen"),
    ("which animal carries a house on its back?", "a snail"),
    ("which animal builds dams in rivers?", "a beaver"),
    ("which animal hops and has a pouch?", "a kangaroo"),
    ("which insect lives in a hive?", "a bee"),
    ("which animal has black and white stripes?", "a zebra"),
    ("which animal spins a web?", "a spider"),
    ("which animal is the king of beasts?", "a lion"),
    ("where do you borrow a novel?", "the library"),
    ("where do you buy medicine?", "the pharmacy"),
    ("where do trains stop?", "the station"),
    ("where do ships unload?", "the harbour"),
    ("where do you watch a play?", "the theatre"),
    ("where do you keep your money safe?", "the bank"),
    ("where do airplanes land?", "the airport"),
    ("where do children learn to count?", "the school"),
    ("where do people pray together?", "the church"),
    ("where do you see old paintings?", "the museum"),
    ("where do you swim in summer?", "the pool"),
    ("where does the judge sit?", "the court"),
    ("where do wild trees grow thick?", "the forest"),
    ("where is sand blown into dunes?", "the desert"),
    ("what falls from clouds in winter?", "snow"),
    ("what shines at noon in a clear sky?", "the sun"),
    ("what lights the sky at midnight?", "the moon"),
    ("what do you see after rain and sun together?", "a rainbow"),
    ("what follows lightning?", "thunder"),
    ("what season comes after winter?", "spring"),
    ("what season has the longest days?", "summer"),
    ("what season makes the leaves fall?", "autumn"),
    ("what colour is fresh grass?", "green"),
    ("what colour is a clear sky?", "blue"),
    ("what colour is ripe wheat?", "gold"),
    ("what colour is coal?", "black"),
    ("what colour is blood?", "red"),
    ("what do you wear on your hands in the cold?", "gloves"),
    ("what do you wear on your feet in the snow?", "boots"),
    ("what do you wear around your neck in winter?", "a scarf"),
    ("what do you wear on your head in the sun?", "a hat"),
    ("what do you put on a cold bed?", "a blanket"),
    ("what has a wheel at each end and pedals?", "a bicycle"),
    ("what runs on rails between towns?", "a train"),
    ("what has wings and an engine?", "an airplane"),
    ("what has strings and a bow?", "a violin"),
    ("what has black and white keys?", "a piano"),
    ("what do you beat with two sticks?", "a drum"),
    ("what do you read every morning for news?", "a newspaper"),
    ("what do you hang on the wall to know the date?", "a calendar"),
    ("what do you drink from at breakfast?", "a cup"),
    ("what do you carry shopping in?", "a basket"),
    ("what grows on a sheep?", "wool"),
    ("what melts when it gets warm?", "ice"),
    ("what do bakers bake from?", "dough"),
    ("what burns in a fireplace?", "wood"),
)

PEOPLE = ("my sister", "my brother", "my uncle", "my aunt", "my friend", "my neighbour", "my cousin", "my teacher")
PLACES = ("the beach", "the market", "the forest", "the museum", "the lake", "the theatre", "the mountains", "the fair")
MOODS = ("tired", "happy", "hungry", "nervous", "bored", "cold", "proud", "sad")
WEATHER = ("rain", "snow", "wind", "fog", "sunshine", "thunder")
PETS = ("dog", "cat", "parrot", "rabbit", "horse", "turtle")
HOBBIES = ("painting", "chess", "gardening", "fishing", "singing", "cooking", "swimming", "reading")
TIMES = ("yesterday", "last week", "this morning", "on Sunday", "last night")

# One chat is one line of the table: the turns share the same fillers, and each reply repeats what it must remember.
CHATS: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        ("I went to {place} with {person} {time}.", "That sounds lovely. Did {your_person} enjoy {place}?"),
        ("Yes, very much, but there was a lot of {weather}.", "What a pity about the {weather}."),
        ("We want to go again soon.", "Then I wish you and {your_person} a good day at {place}."),
    ),
    (
        ("I feel {mood} today.", "Why do you feel {mood}?"),
        ("I had a long talk with {person} {time}.", "Maybe {your_person} can help you."),
        ("Perhaps I should rest.", "Yes, rest a little if you feel {mood}."),
    ),
    (
        ("{Person} gave me a {pet} {time}.", "How exciting! Is the {pet} still young?"),
        ("It is one year old and very clever.", "A clever {pet} is good company."),
        ("Whom should I thank?", "You should thank {your_person} for the {pet}."),
    ),
    (
        ("I started {hobby} {time}.", "Good for you! Is {hobby} difficult?"),
        ("It is hard, but {person} helps me.", "Then {your_person} must know {hobby} well."),
        ("I practise every evening.", "Soon you will be good at {hobby}."),
    ),
    (
        ("What shall I do in this {weather}?", "In {weather} I would stay inside."),
        ("{Person} wants to visit {place}.", "Then go to {place}, but mind the {weather}."),
        ("And who comes along?", "You said that {your_person} comes along."),
    ),
    (
        ("My {pet} ran away at {place}.", "Oh no! Did you look for the {pet} everywhere?"),
        ("{Person} found it {time}.", "How kind of {your_person}."),
        ("Now I am {mood}.", "No wonder you are {mood} after that."),
    ),
    (
        ("{Person} loves {hobby}.", "Then give {your_person} something for {hobby}."),
        ("We met at {place} {time}.", "Is {place} a good spot for {hobby}?"),
        ("It is, unless there is {weather}.", "Let us hope there is no {weather}."),
    ),
)
