"""The words the corpus is about: some three hundred topics, each with four facts.

A topic is one line of a table:

    name | where | verb phrase | detail, detail, detail

What the last three fields mean depends on the category and is said above each
table. They are what lets an answer say something true of the thing it was asked
about: the grammar (`grammar.py`) has no other knowledge of the world.

A leading `+` marks a name that is plural already (`+pancakes`). No word here may
be one of the voice markers in `voices.json`; `test_corpus.py` checks that, so a
voice can only come from how a thing is said and never from what it is about.
"""

# where it lies | what people do there | what is found there
PLACE = """
harbour | by the sea | watch the boats | gulls, fishing nets, coils of rope, wooden boats
market | in the old square | buy fresh fruit | baskets of plums, loud traders, bright awnings, cheese stalls
library | on the main street | read for an hour | tall shelves, old maps, reading lamps, children's books
lighthouse | at the end of the cape | count the ships | a spiral stair, a great lamp, sea birds, thick walls
museum | beside the park | look at the paintings | stone statues, clay pots, glass cases, Roman coins
bakery | round the corner | buy warm rolls | fresh loaves, plum cakes, flour sacks, sugar buns
station | near the river | wait for the train | long platforms, iron clocks, heavy suitcases, ticket windows
garden | behind the house | pull the weeds | rose beds, garden chairs, bean rows, ripe tomatoes
forest | beyond the fields | follow the path | tall pines, mossy stones, hidden streams, ferns
mountain | to the north | climb to the hut | steep paths, rock walls, snow fields, wild goats
river | below the town | skip stones | slow barges, willow trees, stone bridges, small fish
beach | south of the cliffs | gather shells | warm sand, rock pools, striped towels, driftwood
village | in the valley | talk by the well | white cottages, a stone church, narrow lanes, a duck pond
castle | on top of the hill | walk along the walls | round towers, a dry moat, iron gates, a great hall
island | far from the coast | camp under the pines | sandy coves, fishing huts, seal rocks, palm trees
bridge | across the canal | watch the water | stone arches, iron lamps, rowing boats, carved lions
farm | at the end of the lane | feed the hens | hay barns, apple trees, muddy tractors, milk cans
school | next to the church | learn new things | wooden desks, chalk boards, coat hooks, a bell
café | on the corner | drink coffee | small tables, sugar bowls, newspapers, lemon tarts
theatre | in the city centre | watch a play | velvet seats, painted scenes, stage lights, a curtain
hospital | on the ring road | visit a friend | long corridors, busy nurses, folded blankets, flower vases
lake | between two hills | row to the far bank | wooden jetties, reeds, wild ducks, clear water
desert | far to the south | ride at night | sand dunes, dry wells, camel tracks, clear stars
cave | under the cliff | light a torch | stone columns, bats, dark pools, old drawings
zoo | at the edge of the city | watch the bears | high fences, feeding bowls, sleepy lions, monkey ropes
airport | outside the town | wait for a flight | long queues, trolleys, glass walls, silver planes
park | in the middle of town | feed the ducks | wooden benches, chestnut trees, a fountain, swings
church | above the square | listen to the organ | stained windows, tall candles, oak pews, stone steps
windmill | on the ridge | grind the corn | canvas sails, grain sacks, wooden gears, a red door
workshop | behind the yard | mend old chairs | saw benches, glue pots, wood shavings, sharp chisels
cinema | by the town hall | see a new film | soft seats, popcorn, a wide screen, posters
swimming pool | near the school | swim a few lengths | blue tiles, wet towels, diving boards, lockers
post office | beside the bank | send a parcel | brown parcels, stamps, string, letter scales
waterfall | deep in the woods | stand in the spray | wet rocks, rainbows, cold mist, green moss
vineyard | on the south slope | pick the grapes | long rows, oak barrels, stone walls, ripe grapes
orchard | past the mill | gather apples | ladders, bee hives, fallen pears, wicker baskets
playground | behind the school | climb the frame | slides, a sand pit, rope bridges, swings
ferry | at the north pier | lean on the rail | car decks, life belts, tea urns, wet ropes
tower | in the old town | climb the stairs | narrow windows, a brass bell, pigeons, worn steps
fair | on the green | ride the big wheel | coloured tents, toffee apples, painted horses, brass bands
"""

# where it is eaten | how it is made | what is in it
FOOD = """
soup | at the kitchen table | stir the pot | leeks, carrots, black pepper, bay leaves
bread | at breakfast | knead the dough | flour, yeast, salt, warm water
apple pie | after dinner | roll the pastry | apples, cinnamon, butter, brown sugar
+pancakes | on Sunday mornings | whisk the batter | eggs, milk, flour, honey
rice | in a deep bowl | rinse the grains | ginger, spring onions, soy sauce, peas
pasta | around the big table | boil the water | tomatoes, basil, garlic, olive oil
fish stew | by the fire | clean the fish | cod, potatoes, parsley, white wine
salad | in the garden | wash the leaves | cucumber, radishes, lemon juice, walnuts
cheese | on a wooden board | warm the milk | cream, salt, herbs, rennet
chocolate | by the window | melt the cocoa | cocoa beans, sugar, vanilla, hazelnuts
tea | in the afternoon | heat the pot | black leaves, mint, lemon, honey
coffee | before work | grind the beans | roast beans, hot water, milk, cane sugar
+dumplings | at the new year | fold the edges | pork, cabbage, ginger, chives
curry | on a cool night | fry the spices | lentils, coconut milk, cumin, chillies
+sandwiches | at the beach | slice the bread | ham, mustard, pickles, lettuce
ice cream | in the summer | churn the cream | milk, strawberries, vanilla, eggs
porridge | on cold mornings | soak the oats | oats, milk, raisins, salt
pizza | on Friday evenings | stretch the dough | tomatoes, mushrooms, olives, cheese
+biscuits | with a cup of tea | cut out the shapes | butter, oats, ginger, syrup
jam | on warm toast | boil the fruit | plums, sugar, lemon peel, berries
+omelettes | at a quick lunch | beat the eggs | eggs, chives, butter, mushrooms
+roast potatoes | with the Sunday meal | peel the potatoes | potatoes, rosemary, salt, goose fat
honey | at breakfast | empty the combs | clover, heather, lime blossom, wax
carrot cake | at a birthday party | grate the carrots | carrots, walnuts, cream cheese, nutmeg
lemonade | under the trees | squeeze the lemons | lemons, sugar, cold water, mint
+noodles | at the night market | pull the dough | broth, eggs, sesame oil, greens
+mussels | near the harbour wall | scrub the shells | garlic, cream, parsley, cider
+pears in syrup | at the end of a feast | peel the pears | pears, cloves, sugar, star anise
bean stew | after a long walk | soak the beans | white beans, thyme, onions, smoked ham
+waffles | at the winter fair | heat the iron | eggs, butter, icing sugar, berries
"""

# where it lives | what it does | what it has
ANIMAL = """
fox | in the woods | hunt at night | a bushy tail, sharp ears, quick paws
owl | in the old barn | fly without a sound | round eyes, soft wings, curved claws
bear | in the mountains | sleep all winter | thick fur, strong arms, a wet nose
whale | in the deep sea | dive for an hour | a broad tail, a huge mouth, a slow song
horse | in the long field | gallop along the fence | a dark mane, long legs, gentle eyes
cat | on the window sill | chase a ball of wool | green eyes, soft paws, white whiskers
dog | beside the door | fetch a stick | floppy ears, a wagging tail, muddy feet
rabbit | under the hedge | nibble clover | long ears, strong back legs, a short tail
hedgehog | in a pile of leaves | roll into a ball | sharp spines, tiny feet, a pointed nose
dolphin | in the warm bay | leap over the waves | smooth skin, a curved fin, small teeth
penguin | on the ice | slide over the snow | short wings, black feathers, webbed feet
elephant | on the wide plain | spray water | long tusks, large ears, a strong trunk
mouse | behind the cupboard | steal crumbs | a thin tail, round ears, tiny teeth
crow | in the tall elm | hide nuts | black wings, a strong beak, clever eyes
frog | at the edge of the pond | catch flies | long legs, wet skin, a sticky tongue
goat | on the steep rocks | eat thistles | curved horns, a thin chin, hard hooves
sheep | on the green hill | graze all day | thick wool, black faces, thin legs
hen | in the yard | scratch the soil | brown feathers, a red comb, yellow feet
duck | on the pond | swim in circles | flat bills, webbed feet, oily feathers
swan | on the quiet lake | guard the nest | a long neck, white wings, a black beak
bee | among the flowers | gather nectar | thin wings, a striped coat, a sting
butterfly | in the meadow | drift over the grass | painted wings, thin legs, a coiled tongue
spider | in the corner of the shed | spin a web | eight legs, many eyes, fine silk
snail | on the wet wall | crawl up the stem | a round shell, soft horns, a trail of slime
turtle | in the warm shallows | swim against the tide | a hard shell, slow flippers, a wrinkled neck
lion | in the tall grass | rest in the shade | a heavy mane, sharp teeth, huge paws
tiger | in the jungle | swim across rivers | black stripes, yellow eyes, strong jaws
wolf | in the northern forest | howl at the moon | long legs, pale eyes, sharp hearing
deer | among the birches | jump over streams | slim legs, branching antlers, spotted fawns
squirrel | in the oak tree | bury acorns | a curled tail, quick hands, tufted ears
parrot | in the rainforest | copy voices | a hooked beak, red feathers, strong claws
camel | in the desert | walk for days | a tall hump, wide feet, long lashes
monkey | in the treetops | swing between branches | long arms, nimble fingers, a curling tail
seal | on the flat rocks | bark at the boats | whiskers, smooth fur, big dark eyes
crab | under the pier | walk sideways | two pincers, a hard back, eyes on stalks
eagle | above the cliffs | circle in the wind | broad wings, keen eyes, strong claws
donkey | at the mill | carry sacks | long ears, a rough coat, small hooves
badger | under the hill | dig tunnels | a striped face, short legs, strong claws
otter | along the river bank | play in the mud | a flat tail, sleek fur, clever paws
pig | in the orchard | look for acorns | a curly tail, pink ears, a wet snout
"""

# where it is done | how it begins | what it needs
ACTIVITY = """
fishing | on the river bank | cast the line | a rod, small hooks, bait, waterproof boots
painting | at the open window | mix the colours | brushes, a canvas, oil paint, an easel
knitting | in an armchair | cast on the stitches | two needles, a ball of wool, a pattern
gardening | behind the shed | turn the soil | a spade, seeds, compost, a watering can
cooking | in a small kitchen | chop the onions | a sharp knife, a heavy pan, fresh herbs
baking | on a floury table | weigh the flour | a mixing bowl, an oven, baking trays
reading | under a lamp | open the first page | a good book, a soft chair, a bookmark
singing | in the choir | warm up your voice | a song book, a piano, deep breaths
dancing | in the village hall | learn the steps | light shoes, a partner, a drum beat
swimming | in the lake | stretch your arms | a towel, goggles, a warm jumper
running | along the canal | tie your laces | running shoes, a water bottle, an easy route
cycling | on country roads | pump the tyres | a helmet, a bicycle, a repair kit
sailing | across the bay | raise the sail | a life jacket, ropes, a steady wind
skiing | on the high slopes | wax the skis | poles, goggles, warm gloves
camping | beside the stream | pitch the tent | a sleeping bag, dry matches, a lantern
hiking | over the hills | read the map | strong boots, a compass, a rucksack
chess | at a table in the park | move a pawn | a board, a clock, a rival
pottery | in the workshop | centre the clay | a wheel, wet clay, glaze, a kiln
sewing | near the window | thread the needle | cotton, buttons, scissors, a thimble
woodwork | in the shed | measure the board | a saw, sandpaper, nails, a plane
photography | in the early light | choose a lens | a camera, a tripod, spare film
writing | at a tidy desk | write one line | a pen, a notebook, an idea
drawing | on the kitchen floor | sharpen a pencil | paper, charcoal, a rubber
juggling | in the back yard | throw one ball | three balls, loose wrists, an open space
climbing | on the sandstone cliffs | check the knots | a rope, chalk, a harness
rowing | on the calm lake | dip the oars | two oars, a boat, a cushion
bird watching | from a wooden hide | keep still | binoculars, a notebook, a flask of tea
star gazing | on the flat roof | let your eyes adjust | a telescope, a star chart, a blanket
football | on the muddy field | kick the ball | a ball, two goals, eleven players
tennis | on the clay court | serve the ball | a racket, a net, white shoes
yoga | on a thin mat | breathe in slowly | a mat, loose clothes, an hour of silence
bee keeping | at the foot of the garden | smoke the hive | a veil, hives, thick gloves
learning a language | on the train | repeat new words | a dictionary, word cards, a pen friend
playing the violin | in the music room | tune the strings | a bow, sheet music, rosin
playing chess online | at the computer | study the openings | a mouse, a chair, a plan
making candles | in the cellar | melt the wax | wicks, moulds, beeswax
flying kites | on the open down | let out the string | a tail, a reel, a fresh breeze
mending clocks | at a small bench | open the case | tiny screws, oil, a magnifying glass
"""

# over what | what people do then | what it brings
WEATHER = """
the rain | over the rooftops | open their umbrellas | puddles, wet coats, full rivers
the snow | over the fields | clear the path | icy steps, white roofs, snowmen
the wind | from the west | hold on to their hats | rattling shutters, flying leaves, high waves
the fog | over the river | drive slowly | damp air, slow trains, dim lamps
the storm | over the sea | close the shutters | thunder, broken branches, high water
the frost | over the meadow | scrape the windows | frozen pipes, icy roads, white grass
the sunset | over the bay | stop on the bridge | long shadows, orange clouds, cool air
the sunrise | over the hills | open the curtains | first light, bird song, pale clouds
the moon | over the chimneys | walk without lamps | silver light, high tides, deep shadows
the night sky | over the valley | look for comets | a million stars, cold air, distant planets
+the stars | over the desert | steer by the north | old legends, faint light, slow patterns
the rainbow | over the barn | point at the sky | seven colours, the end of the rain, wet grass
the heat | over the city | sit in the shade | dusty roads, open windows, thirsty dogs
+the clouds | over the ridge | guess at shapes | cool shade, light showers, slow shadows
spring | in the valley | plant the beans | nesting birds, tulips, longer days
summer | along the coast | swim until dusk | ripe berries, short nights, haymaking
autumn | in the woods | sweep the leaves | mushrooms, red leaves, early dusk
winter | in the north | stay by the stove | short days, thick scarves, frozen ponds
the tide | along the shore | move the boats | wet sand, small crabs, driftwood
the thunder | beyond the hills | count the seconds | flashes of light, heavy rain, nervous horses
"""

# where it is kept | what it is used for | what it has
OBJECT = """
lantern | on a hook by the door | light the path | a glass pane, a brass handle, a short wick
clock | above the mantelpiece | tell the time | two hands, a pendulum, small wheels
kite | in the hall cupboard | catch the wind | a long tail, a wooden frame, a reel of string
map | in the top drawer | find the way | fine lines, blue rivers, folded corners
key | under the mat | open the gate | worn teeth, an iron ring, a paper tag
compass | in a coat pocket | find the north | a steel needle, a glass cover, a small dial
drum | in the attic | keep the beat | a tight skin, two sticks, a wooden rim
violin | in its case | play a waltz | four strings, a curved neck, a varnished back
piano | in the front room | play a duet | black keys, brass pedals, a heavy lid
guitar | beside the bed | play a few chords | six strings, a round hole, a leather strap
telescope | on the balcony | look at the planets | two lenses, a long tube, a tripod
camera | in a padded bag | take a picture | a lens, a shutter, a neck strap
umbrella | in the stand | keep off the rain | thin ribs, a bent handle, black cloth
bicycle | in the shed | ride to work | two wheels, a bell, a basket
boat | at the jetty | cross the lake | two oars, a flat keel, a painted name
book | on the shelf | pass the evening | yellow pages, a cloth cover, small print
letter | in a shoe box | send some news | a stamp, a seal, neat lines
ring | in a velvet box | keep a promise | a thin band, a small stone, an inscription
chair | at the table | rest your feet | four legs, a woven seat, a straight back
teapot | on the dresser | pour the tea | a curved spout, a round lid, a blue pattern
blanket | at the foot of the bed | keep warm | soft wool, a striped edge, a patch
candle | on the table | read at night | a cotton wick, clear wax, a small flame
mirror | in the hall | comb your hair | a gilt frame, a cracked corner, clear glass
ladder | against the wall | reach the roof | ten rungs, iron feet, a rope
hammer | in the tool box | drive a nail | an ash handle, a steel head, a claw
basket | on the back step | carry the eggs | a woven lid, two handles, a checked cloth
hat | on the peg | shade your eyes | a wide brim, a ribbon, a feather
coat | behind the door | keep out the cold | deep pockets, horn buttons, a warm lining
puppet | in the toy chest | tell a tale | jointed arms, a painted face, eight strings
toy train | under the bed | amuse the children | tin wheels, a red engine, three carriages
radio | on the kitchen shelf | hear the news | a dial, a thin aerial, a loud speaker
bell | over the gate | call the workers | an iron tongue, a rope, a clear note
robot | in the laboratory | sort the parts | metal arms, a round head, blinking lights
computer | on the desk | write a letter | a keyboard, a screen, many cables
quilt | in the linen chest | cover the bed | bright squares, tiny stitches, a soft filling
wheelbarrow | beside the compost | move the soil | one wheel, two handles, a tin tray
"""

# where it grows | what it does | what it has
PLANT = """
rose | along the wall | bloom in June | sharp thorns, red petals, a sweet scent
oak | on the common | live for centuries | deep roots, rough bark, acorns
sunflower | beside the fence | turn to the light | tall stems, yellow petals, striped seeds
tulip | in the window box | open in April | smooth leaves, round bulbs, bright cups
willow | at the water's edge | bend in the wind | long branches, thin leaves, soft bark
apple tree | in the orchard | flower in May | white blossom, low boughs, crisp fruit
fern | in the damp woods | unfold in spring | curled tips, green fronds, fine roots
cactus | on the dry plain | store water | sharp spines, thick skin, rare flowers
pine | on the rocky slope | stay green all year | long needles, sticky cones, straight trunks
ivy plant | on the old tower | climb the stones | dark leaves, clinging roots, black berries
mushroom | under the beeches | appear overnight | pale gills, a round cap, a short stem
lily | in the pond | float on the water | flat leaves, white petals, long stalks
tomato plant | in the greenhouse | ripen in August | hairy stems, red fruit, yellow flowers
lavender bush | by the garden gate | attract bees | blue spikes, silver leaves, a strong scent
maple | along the avenue | change colour in autumn | broad leaves, winged seeds, sweet sap
pumpkin | in the vegetable patch | swell until October | orange skin, long vines, flat seeds
"""

# where he or she works | what he or she does | what he or she uses
PERSON = """
baker | in the bakery | bake rolls before dawn | a wide oven, a rolling pin, floury hands
sailor | on the open ocean | tie clever knots | a canvas bag, a rope, a knife
teacher | at the village school | explain hard sums | chalk, patience, a tall desk
doctor | at the clinic | listen to hearts | a black bag, clean hands, a thermometer
farmer | on the hill farm | milk the cows | a tractor, strong boots, a sheepdog
painter | in a cold studio | paint harbours | fine brushes, stained hands, a palette
gardener | in the palace grounds | prune the roses | shears, a straw hat, a barrow
fisherman | off the north coast | mend the nets | a small boat, a lamp, rubber boots
carpenter | in the timber yard | build oak tables | a saw, a pencil, a steady hand
tailor | above the shop | sew winter coats | a tape, sharp scissors, pins
pilot | at the airfield | fly the mail plane | a headset, a leather jacket, charts
nurse | on the night ward | calm the patients | soft shoes, a watch, clean bandages
musician | in the town band | play the trumpet | a tin trumpet, sheet music, a stand
astronomer | at the observatory | measure the stars | a telescope, a notebook, cold fingers
librarian | among the shelves | find lost books | a card index, a stamp, a low voice
postman | along the coast road | deliver the letters | a red bicycle, a satchel, a whistle
blacksmith | at the forge | shoe the horses | an anvil, a hammer, a leather apron
clockmaker | in a narrow shop | repair old clocks | tiny tools, a bright lamp, an eyeglass
king | in the stone castle | rule the valley | a heavy crown, a throne, a long cloak
queen | in the summer palace | settle quarrels | a silver ring, a tall chair, wise advisers
wizard | in a crooked tower | brew strange potions | a pointed hat, a staff, dusty books
dancer | on the great stage | rehearse on the empty stage | light shoes, a mirror, strong legs
shepherd | on the high pasture | count the flock | a crook, a whistle, an old dog
engineer | at the bridge works | draw careful plans | a slide rule, a helmet, blueprints
detective | in the back streets | follow footprints | a magnifying glass, a notebook, a long coat
cook | in the hotel kitchen | taste every sauce | a copper pan, a ladle, a white apron
miller | at the water mill | grind the wheat | heavy stones, grain sacks, a wheel
beekeeper | at the edge of the heath | collect the combs | a veil, a smoker, thick gloves
"""

# where it is found | what it helps one to do | what it needs
IDEA = """
friendship | in small moments | share a secret | time, kind words, long walks
patience | in long queues | wait for the bus | practice, slow breaths, an open mind
courage | in hard times | tell the truth | a firm step, a clear head, good company
homework | at the kitchen table | remember the lesson | a sharp pencil, clean paper, a timer
sleep | in a dark room | rest your mind | a cool pillow, heavy curtains, a regular hour
music | in every town | pass a long evening | an instrument, a tune, open ears
history | in old letters | understand your neighbours | dates, witnesses, careful readers
mathematics | in a single proof | count the stars | clear definitions, chalk, hard thinking
poetry | in plain words | remember a face | rhythm, silence, a few images
travel | on slow trains | see your home anew | a ticket, a small bag, sturdy shoes
money | at the bank | pay the rent | a ledger, a plan, self control
work | from nine to five | earn your bread | a desk, clear goals, a lunch break
time | between two bells | heal a quarrel | clocks, calendars, memory
dreams | in the early hours | see strange cities | deep sleep, a notebook, an open window
science | in the laboratory | test a guess | measurements, questions, good tools
family | around one table | carry a burden | shared meals, old stories, forgiveness
birthdays | once a year | gather old friends | candles, cake, paper hats
holidays | by the sea | forget the office | a suitcase, a timetable, a sun hat
"""

CATEGORIES = {
    "place": PLACE, "food": FOOD, "animal": ANIMAL, "activity": ACTIVITY, "weather": WEATHER,
    "object": OBJECT, "plant": PLANT, "person": PERSON, "idea": IDEA,
}

# Topics that no training document mentions in a question: they test whether the
# model can take an unseen word from the question into its answer.
HELD_OUT_TOPICS = {
    "vineyard", "ferry", "waffles", "bean stew", "badger", "parrot", "juggling", "rowing",
    "the rainbow", "wheelbarrow", "puppet", "maple", "beekeeper", "courage",
}

# Names without facts of their own: they take those of another topic of their category. There are so many
# that the model does better to copy a name from the question than to know them all.
EXTRA_NAMES = {
    "place": "abbey, aquarium, arcade, barn, bay, bookshop, boathouse, brewery, butcher's shop, campsite, canal, canyon, cellar, chapel, "
             "cliff path, clock shop, college, cottage, courthouse, creek, crossroads, dairy, dam, dockyard, factory, fortress, foundry, "
             "gallery, glasshouse, gorge, greengrocer, guest house, gymnasium, hamlet, heath, hermitage, hotel, inn, jetty, junction, kennel, "
             "kiosk, laundry, lagoon, log cabin, lookout, mansion, marina, marsh, meadow, monastery, moor, motorway, nursery, observatory, "
             "palace, pasture, pavilion, peninsula, pharmacy, planetarium, police station, pond, prison, quarry, quay, racecourse, reef, "
             "reservoir, restaurant, ruin, sawmill, shipyard, shore, skating rink, smithy, stable, stadium, square, suburb, swamp, "
             "tavern, temple, toll house, town hall, tram depot, tunnel, university, valley, volcano, warehouse, water tower, weir, wharf, zebra crossing",
    "food": "almond cake, +apricots, bacon, baked fish, barley broth, +beans on toast, beetroot soup, blackberry tart, brown bread, butter, "
            "buttermilk, cabbage rolls, caramel, celery soup, cheesecake, cherry pie, chicken broth, +chips, chutney, cider, cinnamon buns, "
            "cocoa, corn bread, +crackers, +crumpets, custard, date cake, +doughnuts, fig jam, +fish fingers, flatbread, fruit salad, "
            "fudge, garlic bread, gingerbread, goulash, granola, gravy, +grilled peppers, hummus, kale soup, +lentils, liquorice, "
            "macaroni, marmalade, marzipan, meat loaf, milk, minestrone, mint sauce, muesli, +muffins, mustard, nougat, nut roast, oat cake, "
            "onion soup, orange juice, oxtail, paella, +pasties, pea soup, +peaches, peanut butter, pesto, +pickles, plum pudding, popcorn, "
            "pumpkin soup, +quiches, raspberry jelly, ratatouille, rhubarb crumble, risotto, rye bread, +sardines, +sausages, +scones, seafood chowder, "
            "shepherd's pie, sherbet, shortbread, spinach pie, sponge cake, stuffed cabbage, sushi, toffee, treacle tart, trifle, turnip mash, "
            "vegetable curry, walnut bread, watermelon, yogurt",
    "animal": "alligator, ant, antelope, armadillo, baboon, bat, beaver, beetle, bison, blackbird, boar, buffalo, bull, canary, carp, caterpillar, "
              "chaffinch, cheetah, chimpanzee, cobra, cockatoo, cormorant, cow, crane, cricket, crocodile, cuckoo, dormouse, dragonfly, eel, falcon, "
              "ferret, firefly, flamingo, gazelle, gecko, giraffe, goldfish, gorilla, grasshopper, grouse, gull, hamster, hare, hawk, heron, "
              "hippo, hornet, hyena, iguana, jackal, jackdaw, jaguar, jay, jellyfish, kingfisher, kitten, ladybird, lark, "
              "leopard, lizard, llama, lobster, lynx, magpie, marmot, mole, moose, moth, mule, newt, nightingale, octopus, ostrich, oyster, "
              "panda, panther, partridge, peacock, pelican, pheasant, pigeon, pike, polecat, pony, porcupine, puffin, puma, python, quail, raccoon, "
              "ram, rat, raven, reindeer, rhino, robin, rook, salamander, salmon, scorpion, shrew, skunk, sloth, slug, sparrow, squid, "
              "stoat, stork, swallow, tadpole, tapir, thrush, toad, trout, vole, vulture, walrus, wasp, weasel, wombat, woodpecker, worm, wren, yak, zebra",
    "activity": "acting, archery, badminton, ballroom dancing, basket weaving, billiards, boat building, bookbinding, bowling, boxing, calligraphy, "
                "canoeing, card making, carving spoons, caving, cheese making, collecting stamps, conjuring, cricket, crochet, croquet, curling, darts, "
                "diving, embroidery, fencing, flower arranging, folding paper, foraging, gliding, golf, gymnastics, handball, hockey, "
                "horse riding, hurdling, ice skating, jewellery making, jogging, keeping a diary, kayaking, lace making, learning Latin, marbling paper, "
                "metalwork, model building, mountaineering, netball, origami, orienteering, pickling, playing cards, playing the flute, playing the harp, "
                "playing the organ, polo, printing, quizzes at the inn, quilting, rambling, restoring furniture, roller skating, rugby, scrapbooking, "
                "sculpting, shooting clay discs, sketching, skipping, sledging, snooker, spinning yarn, squash, stitching, stone carving, surfing, "
                "table tennis, telling stories, thatching, trampolining, upholstery, volleyball, walking barefoot, watching trains, water polo, weaving, "
                "weightlifting, whittling, windsurfing, wrestling",
    "weather": "the drizzle, the hail, the sleet, the mist, the dew, the breeze, the gale, the hurricane, the monsoon, the drought, the thaw, "
               "the avalanche, the blizzard, the cyclone, the dawn, the dusk, the eclipse, the comet, the full moon, the half moon, the flood, "
               "the haze, the ice, the lightning, the midnight sun, the north wind, the northern lights, the overcast sky, the sandstorm, the sea fog, "
               "the shower, the slush, the smog, the squall, the swell, the twilight, the whirlwind, +the icicles, +the meteors, +the snowflakes, "
               "+the raindrops, +the shadows, +the sunbeams, +the trade winds, Midsummer, harvest time, the equinox, the heatwave, the dust devil",
    "object": "abacus, accordion, anchor, axe, bagpipe, balloon, banjo, barrel, barometer, bathtub, bench, binder, bobbin, bolt, bookcase, bottle, "
              "bowl, bracelet, briefcase, broom, brush, bucket, buckle, button, cabinet, cage, calculator, calendar, canoe, cart, cello, chain, chest, "
              "chisel, clarinet, coin, comb, corkscrew, cradle, crate, crayon, cup, curtain, cushion, desk, diary, dictionary, doll, drawer, "
              "dustpan, easel, envelope, fan, faucet, file, flagpole, flask, flute, fork, fountain pen, funnel, glove, goblet, gong, grater, "
              "hairbrush, hammock, handkerchief, harp, helmet, hinge, hourglass, iron, jar, jigsaw, jug, kettle, knife, lamp, lawnmower, lever, "
              "locket, loom, magnet, medal, megaphone, microphone, microscope, mitten, mop, mug, napkin, necklace, needle, notebook, oar, "
              "paddle, padlock, parasol, pencil, perfume bottle, pillow, pipe, pitcher, plate, plough, postcard, printer, pulley, purse, rake, "
              "razor, rope, rucksack, ruler, saddle, satchel, sausage pan, saucer, scarf, scooter, screwdriver, scroll, shelf, shovel, "
              "sieve, sledge, slipper, snow globe, spade, sponge, spoon, stamp, statue, stool, suitcase, sundial, sword, table, tambourine, "
              "tent, thermometer, thimble, throne, ticket, torch, towel, tray, tricycle, trombone, trumpet, trunk, typewriter, tyre, vase, vest, "
              "wallet, wardrobe, watch, whistle, wig, xylophone, zip",
    "plant": "acacia, alder, anemone, ash, aspen, azalea, bamboo, banana tree, bay tree, beech, begonia, birch, blackthorn, bluebell, bramble, buttercup, "
             "cabbage, carnation, cedar, cherry tree, chestnut, chrysanthemum, clover, columbine, cornflower, cowslip, crocus, cypress, daffodil, dahlia, "
             "daisy, dandelion, ebony tree, elder, elm, eucalyptus, fig tree, fir, forsythia, foxglove, fuchsia, gardenia, gentian, geranium, "
             "gooseberry bush, gorse, hawthorn, hazel, heather, hibiscus, holly, hollyhock, honeysuckle, hyacinth, hydrangea, iris, jasmine, juniper, "
             "laburnum, larch, laurel, lilac, lime tree, lotus, lupin, magnolia, marigold, mimosa, mistletoe, monkey puzzle, moss, mulberry, "
             "myrtle, narcissus, nasturtium, nettle, olive tree, orange tree, orchid, palm, pansy, passion flower, peach tree, peony, petunia, "
             "plane tree, plum tree, poplar, poppy, primrose, quince, raspberry cane, reed, rhododendron, rosemary, rowan, rubber plant, rush, "
             "sage, snapdragon, snowdrop, spruce, sycamore, thistle, thyme, violet, walnut tree, water lily, wisteria, yew, zinnia",
    "person": "acrobat, actor, admiral, ambassador, apprentice, architect, archer, artist, banker, barber, bishop, boatman, bookseller, botanist, "
              "bricklayer, bus driver, butcher, butler, captain, caretaker, chemist, clerk, clown, coachman, cobbler, composer, conductor, courier, cowboy, "
              "cyclist, dentist, diver, duke, editor, electrician, emperor, explorer, firefighter, florist, forester, gamekeeper, general, "
              "geologist, ghost, glazier, goldsmith, governess, greengrocer, grocer, guard, guide, harpist, herald, hermit, historian, hunter, inventor, "
              "jester, jeweller, jockey, journalist, judge, juror, knight, lawyer, locksmith, logger, lorry driver, magician, mayor, mechanic, merchant, "
              "messenger, midwife, miner, minister, monk, mountaineer, nun, optician, peasant, pedlar, philosopher, photographer, pianist, "
              "plumber, poet, porter, potter, prince, princess, printer, professor, programmer, publisher, ranger, reporter, runner, saddler, "
              "scholar, scientist, scribe, sculptor, secretary, sheriff, shoemaker, singer, smith, soldier, stonemason, student, surgeon, "
              "surveyor, swimmer, tanner, thatcher, thief, tinker, trader, traveller, tutor, umpire, usher, vet, violinist, waiter, watchman, weaver, "
              "welder, witch, woodcutter, writer, zookeeper",
    "idea": "adventure, advice, ambition, art, beauty, boredom, chance, change, childhood, common sense, curiosity, democracy, discipline, "
            "economics, education, exercise, faith, fame, fashion, fear, freedom, generosity, geography, good manners, grammar, gratitude, growing up, "
            "health, hope, hospitality, humour, imagination, independence, innocence, justice, kindness, knowledge, language, law, leisure, "
            "literature, logic, loyalty, luck, memory, mercy, modesty, nature, neighbourliness, order, peace, philosophy, physics, politics, "
            "progress, punctuality, reason, respect, revenge, routine, shyness, silence, simplicity, solitude, success, superstition, sympathy, "
            "teamwork, thrift, tradition, trust, truth, virtue, wealth, wisdom, wonder, youth",
}

# Words that make a name out of another: "the copper kite", "garden owls".
MODIFIERS = ["amber", "autumn", "blue", "bronze", "brown", "cardboard", "clay", "copper", "cotton", "country", "crooked", "crystal", "dusty", "eastern",
             "empty", "foreign", "forgotten", "French", "frozen", "garden", "giant", "glass", "golden", "green", "grey", "hidden", "hollow", "Irish",
             "iron", "island", "ivory", "lemon", "little", "marble", "midnight", "modern", "mountain", "narrow", "northern", "orange", "paper",
             "pebble", "polar", "purple", "rainy", "red", "rusty", "sandy", "scarlet", "shiny", "silent", "silver", "southern", "spotted", "striped",
             "sugar", "summer", "tin", "tiny", "twin", "upstairs", "velvet", "village", "violet", "western", "white", "wild", "windy",
             "winter", "wooden", "woollen", "yellow"]

PLURAL_IDEAS = {"dreams", "birthdays", "holidays"}

IRREGULAR_PLURALS = {"mouse": "mice", "sheep": "sheep", "deer": "deer", "wolf": "wolves",
                     "postman": "postmen", "fisherman": "fishermen", "cactus": "cacti"}

FEMALE = {"baker", "doctor", "painter", "pilot", "nurse", "astronomer", "librarian", "queen",
          "dancer", "engineer", "detective", "beekeeper", "teacher"}

IRREGULAR_PASTS = {
    "buy": "bought", "read": "read", "learn": "learned", "drink": "drank", "row": "rowed",
    "ride": "rode", "light": "lit", "grind": "ground", "see": "saw", "swim": "swam",
    "send": "sent", "stand": "stood", "stir": "stirred", "beat": "beat", "cut": "cut",
    "sleep": "slept", "fly": "flew", "dive": "dived", "leap": "leapt", "slide": "slid",
    "steal": "stole", "hide": "hid", "catch": "caught", "eat": "ate", "spin": "spun",
    "swing": "swung", "dig": "dug", "cast": "cast", "let": "let", "keep": "kept",
    "throw": "threw", "choose": "chose", "write": "wrote", "hold": "held", "drive": "drove",
    "sit": "sat", "find": "found", "tell": "told", "take": "took", "bend": "bent",
    "build": "built", "sew": "sewed", "draw": "drew", "shoe": "shod", "rest": "rested",
    "sweep": "swept", "go": "went", "stop": "stopped", "chop": "chopped", "dip": "dipped",
    "skip": "skipped", "grate": "grated", "hear": "heard", "pay": "paid", "forget": "forgot",
    "feed": "fed", "have": "had", "make": "made", "give": "gave", "bring": "brought",
    "meet": "met", "sing": "sang", "begin": "began", "pump": "pumped", "wax": "waxed",
    "understand": "understood", "play": "played", "stay": "stayed", "carry": "carried",
    "bury": "buried", "fry": "fried", "tie": "tied", "copy": "copied", "float": "floated",
    "do": "did", "come": "came", "run": "ran", "deliver": "delivered", "open": "opened",
    "gather": "gathered", "follow": "followed", "study": "studied", "heal": "healed",
    "lean": "leaned", "knit": "knitted", "plan": "planned", "get": "got", "put": "put",
    "set": "set", "leave": "left", "speak": "spoke", "rehearse": "rehearsed", "bloom": "bloomed",
}

COMPANIONS = ["my sister", "my brother", "my grandmother", "my grandfather", "my uncle", "my aunt",
              "my neighbour", "an old friend", "my cousin", "my teacher", "my father", "my mother",
              "two friends", "a colleague", "the children next door", "my landlady"]

NAMES_HE = ["Tom", "Oliver", "Hugo", "Felix", "Arthur", "Ned", "Samuel", "Jonas", "Milo", "Edgar",
            "Walter", "Peter", "Basil", "Rufus", "Otto", "Henry", "Amir", "Kofi", "Diego", "Ravi"]
NAMES_SHE = ["Anna", "Clara", "Mabel", "Ivy", "Rosa", "Nora", "Edith", "Lucy", "Martha", "Wanda",
             "Greta", "Alice", "Ruth", "Stella", "Flora", "Maya", "Leila", "Ines", "Yuki", "Tess"]

TIMES = ["in the morning", "at dusk", "on Sundays", "in early spring", "after lunch", "at noon",
         "late at night", "in the evening", "on quiet days", "before breakfast", "in the autumn",
         "at the weekend", "after the rain", "all year round", "in winter", "on market days"]

PAST_TIMES = ["yesterday", "last week", "last summer", "many years ago", "on Monday", "last winter",
              "one evening in May", "three days ago", "this morning", "when I was young",
              "last Sunday", "a month ago", "on my birthday", "in the spring", "two years ago"]

CONDITIONS = ["it rains", "the sun is low", "the day is over", "the wind turns", "the summer ends",
              "guests arrive", "no one is watching", "the evening is calm", "the bells ring",
              "the lamps are lit", "the work is done", "the children are asleep", "the tide is out",
              "the first snow falls", "the shops close", "the kettle boils", "the roads are empty",
              "the leaves fall", "school is over", "the moon is up"]

HERO_ADJECTIVES = ["young", "old", "small", "clever", "shy", "stubborn", "curious", "hungry", "tall",
                   "proud", "quiet", "patient", "clumsy", "brave", "thin", "busy", "careful", "kind"]

# (what the user says, what the trouble is called, what may be done about it)
PROBLEMS = [
    ("I am tired", "being tired", ["go to bed early", "take a short nap", "drink a glass of water"]),
    ("I lost my keys", "lost keys", ["look under the sofa", "check every pocket", "ask your neighbour"]),
    ("I have an exam tomorrow", "an exam", ["read your notes once more", "sleep for eight hours", "eat a good breakfast"]),
    ("I cannot sleep", "a sleepless night", ["open the window", "read a slow book", "count to a thousand"]),
    ("I am bored", "boredom", ["start a drawing", "call an old friend", "tidy a drawer"]),
    ("I missed my train", "a missed train", ["wait for the next one", "buy a hot drink", "walk along the river"]),
    ("my car will not start", "a stubborn car", ["check the battery", "call a mechanic", "take the bus"]),
    ("I burnt the dinner", "a burnt dinner", ["open all the windows", "make some toast", "order a pizza"]),
    ("I have a cold", "a cold", ["drink hot lemon", "stay in bed", "wear a thick scarf"]),
    ("I forgot my sister's birthday", "a forgotten birthday", ["send her flowers", "bake a cake", "call her at once"]),
    ("my computer is slow", "a slow computer", ["turn it off and on again", "close a few windows", "delete old files"]),
    ("I am nervous about my new job", "a new job", ["arrive ten minutes early", "ask many questions", "wear comfortable shoes"]),
    ("my cat is missing", "a missing cat", ["leave the back door open", "put out some food", "search the neighbour's shed"]),
    ("I broke my favourite cup", "a broken cup", ["glue the pieces", "sweep the floor with care", "buy another one"]),
    ("I have too much work", "too much work", ["make a short list", "do one thing first", "ask for help"]),
    ("it is raining and I have no umbrella", "the rain", ["wait under the bridge", "borrow a coat", "run between the shops"]),
    ("I quarrelled with my friend", "a quarrel", ["write a short letter", "say that you are sorry", "wait a day and call"]),
    ("my plants are dying", "dying plants", ["water them less", "move them to the window", "change the soil"]),
    ("I do not know what to wear", "the question of clothes", ["choose something simple", "look at the sky first", "wear the blue coat"]),
    ("I am hungry", "hunger", ["boil two eggs", "make a sandwich", "warm up some soup"]),
    ("I am moving to a new town", "a new town", ["walk through every street", "greet the neighbours", "find a good bakery"]),
    ("my back hurts", "a sore back", ["stretch on the floor", "take a warm bath", "sit up straight"]),
]

SKY = ["the sky is clear", "clouds are coming in from the west", "it is raining a little",
       "there is a light wind", "it is warm and dry", "the fog is lifting", "it is close to freezing",
       "there may be a storm tonight", "the air is cool", "it will snow in the hills",
       "the sun is out", "a few drops are falling"]

SKY_LATER = ["it will be dry by evening", "the wind will drop tonight", "more rain is on its way",
             "it will be warmer tomorrow", "the clouds will clear by noon", "the night will be cold",
             "tomorrow will be much the same", "it should stay mild all week"]

SKY_ACTS = ["take a coat", "carry an umbrella", "leave the windows open", "walk to work",
            "keep your boots by the door", "dry the washing outside", "wear a scarf", "bring in the chairs"]

DISHES_SIDE = ["a slice of bread", "a cup of tea", "a green salad", "a little butter", "cold milk",
               "a spoon of honey", "boiled potatoes", "a glass of cider"]

PAST_CONDITIONS = ["the rain stopped", "the sun rose", "night fell", "the moon came up", "spring came", "the snow melted",
                   "the bells rang", "the market closed", "the lamps went out", "the wind dropped", "the last guest left"]

SEASONS = ["spring morning", "winter night", "summer day", "autumn evening", "rainy day", "snowy morning"]

# Things the lexicon knows nothing of. An answer says so, and says the word back.
UNKNOWN = ["volcanoes", "submarines", "dragons", "spaceships", "the opera", "magnets", "glaciers", "skateboards",
           "the pyramids", "trumpets", "electricity", "dinosaurs", "the circus", "diamonds", "helicopters", "the telephone",
           "philosophy", "kangaroos", "the Atlantic", "sculpture", "marbles", "the tuba", "vitamins", "hot air balloons",
           "the post horn", "unicorns", "gravity", "the president", "karate", "ballet", "satellites", "the microscope",
           "fireworks", "lobsters", "the harvest moon", "origami", "chemistry", "rhubarb", "gondolas", "the barometer"]

SYLLABLES = ["bra", "zor", "mel", "tin", "quo", "lin", "da", "ver", "nox", "pim", "ul", "gra", "sho", "fen", "wick", "mar",
             "tol", "brin", "dle", "moor", "ash", "kel", "vo", "rin", "sta", "lo", "per", "hal", "dun", "ib", "ex", "ju",
             "cran", "eth", "ko", "sil", "umb", "yar", "thwa", "nel", "gor", "pla", "win", "ster", "ham", "cor", "bel", "fi"]
