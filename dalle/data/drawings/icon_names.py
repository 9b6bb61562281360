"""Names of icons: objects that are no emoji, further names of emojis, and names that mean something else.

An icon shows a subject if its name is the label of an emoji, an object of `OBJECTS` or a name of `ALIASES`, and is not
in `NOT_DRAWN`. Shortcodes of emojis are not looked at: an icon named "moon" is a crescent, the shortcode is another
emoji. Names were compared with the drawings. An entry "tabler/book" holds for the icons of one family of sets.
"""

# objects that at least four icon sets draw and that are no emoji, as "name" or "name=label"
OBJECTS = """
acorn, address book, anvil, aperture, armchair, asteroid, audio cassette=cassette, baby carriage, bacteria, balcony,
bandage, barbell, barcode, barn, barrel, baseball bat, battery charging=charging battery, beaker, bed double=double
bed, belt, bench, binoculars, blender, blinds, bone fracture, book, bookshelf, boombox, bottle, bow tie, bowl, bowling
ball, box, bread slice, brick wall, bulldozer, cable car, cactus pot, cake slice, calculator, campfire, candy cane,
cannabis=hemp leaf, car battery, car door, car wash, caravan, carousel, cash register, castle tower=tower,
cctv=security camera, chalkboard, chandelier, charging station, chef hat, chess bishop, chess king, chess knight,
chess queen, chess rook, chimney, chocolate, clock, coffee bean, coffee mug, coins, compact disc, compass rose,
cooking pot, coronavirus, cpu=processor, crane, crib, cube, cup, curtains, cylinder, database, desk, desk lamp,
diaper, dice, diploma, dishwasher, door open=open door, drill, drone, dumbbell, earbuds, easel, eiffel tower, engine,
envelope open=open envelope, eraser, escalator, eye closed=closed eye, eyedropper, fan, farm, faucet, fence, fire
hydrant, fireplace, first aid kit, flask, floor lamp, flower, folder open=open folder, forest, forklift, funnel,
galaxy, garage, gas pump, gas station, gate, gavel, gift card, glove, golf ball, golf cart, grass, greenhouse, gun,
hair dryer, handcuffs, hanger, hard drive, hard hat, hat, headset, heart, heater, helmet, highlighter, horseshoe, hot
air balloon, hurricane, ice cream cone, iron, jeep, kettle, keyhole, kidneys, ladle, lamp, landscape, leaf, lectern,
library, light switch, lighthouse, liver, log, mailbox, map, martini, maze, medicine bottle, meteor, metronome,
microchip, microwave, milestone, milk, moon stars=moon with stars, moped, music note, nail, necklace, needle, noodles,
nurse, office chair, outlet, oven, paint bucket, paint roller, paper plane, parking meter, parrot cage=bird cage,
passport, paw, pen nib, perfume, piano, picnic table, pie chart, piggy bank, pill bottle, pillow, pills, pinwheel,
pipette, pizza slice, planet, podium, poker chip, polaroid, pot, projector, pumpkin, puzzle, pyramid, qr code, radar,
rake, refrigerator, remote control, road, rocking chair, router, rug, ruler, safe, salad, satellite dish, sausage,
scanner, scarecrow, sd card, server, sheep, ship wheel, shop, shopping bag, shopping basket, shower head, shredder,
sim card, siren, skirt, smartwatch, snowmobile, sofa, solar panel, soup, speaker=audio speaker, sphere, spray can,
sprout, stairs, stamp, steering wheel, sticky note, stomach, store, submarine, suitcase, swimming pool, sword, table
lamp, tablet, tank, tennis ball, test tubes, theater, thunderstorm, tire, tow truck, traffic cone, traffic light,
treadmill, tree, trolley, trowel, tsunami, tunnel, turntable, usb, utility pole, vacuum cleaner, van, vault, vest,
vinyl record, virus, wallet, wardrobe, warehouse, washing machine, water bottle, waterfall, watering can, webcam,
wheat, whisk, whistle, wind turbine, windmill, windsock, world=globe stand, yoga
"""

# name of an icon=label of an emoji, or of an object
ALIASES = """
angry=angry face, archery=bow and arrow, band aid=adhesive bandage, bath=bathtub, beach umbrella=umbrella on ground,
beach=beach with umbrella, bee=honeybee, beer=beer mug, bike=bicycle, billiards=pool 8 ball, boat=sailboat, book
open=open book, bowl spoon=bowl with spoon, bulb=light bulb, cake=birthday cake, car=automobile, cheese=cheese wedge,
cherry=cherries, clap=clapping hands, cloud lightning=cloud with lightning, cloud rain=cloud with rain, cloud
snow=cloud with snow, clown=clown face, clubs=club suit, cocktail=cocktail glass, coffee=hot beverage,
computer=desktop computer, controller=video game, corn=ear of corn, couch=sofa, desktop=desktop computer,
diamonds=diamond suit, disco ball=mirror ball, dizzy face=face with crossed-out eyes, dizzy=face with crossed-out
eyes, donut=doughnut, earth africa=globe showing Europe-Africa, earth americas=globe showing Americas, earth
asia=globe showing Asia-Australia, earth europe=globe showing Europe-Africa, eyeglasses=glasses, fax=fax machine,
fencer=person fencing, fencing=person fencing, film strip=film frames, film=film frames, fingers crossed=crossed
fingers, fist raised=raised fist, fist=raised fist, flame=fire, flushed=flushed face, football=american football,
fridge=refrigerator, game-icons/globe=globe stand, game-icons/moon=waning crescent moon, game-icons/mouse=mouse,
game-icons/scooter=motor scooter, game-icons/speaker=speaker high volume, game-icons/spy=detective, germ=microbe,
gift=wrapped gift, globe=globe with meridians, golf=flag in hole, hand=raised hand, handball=person playing handball,
headphones=headphone, hearts=heart suit, high heel=high-heeled shoe, hippo=hippopotamus, hockey=ice hockey,
hourglass=hourglass done, icon-park/diamonds=gem stone, icon-park/disk=floppy disk, icon-park/football=soccer ball,
icon-park/globe=globe stand, icon-park/lotion=lotion bottle, icon-park/mute=muted speaker, icon-park/needle=syringe,
icon-park/phone=mobile phone, id card=identification card, injection=syringe, iphone=mobile phone, island=desert
island, juggler=person juggling, kayak=canoe, kneeling=person kneeling, knife=kitchen knife, ladybug=lady beetle, life
buoy=ring buoy, lightning=high voltage, lips=mouth, lock=locked, massage=person getting massage, mdi/needle=syringe,
mdi/school=graduation cap, mdi/slide=playground slide, medal=sports medal, moon=crescent moon, mortar board=graduation
cap, motorbike=motorcycle, mountain snow=snow-capped mountain, mouse=computer mouse, muscle=flexed biceps,
orange=tangerine, palette=artist palette, person skiing=skier, person snowboarding=snowboarder, phone=telephone
receiver, pine tree=evergreen tree, pistol=gun, plane=airplane, plant=potted plant, plug=electric plug, poo=pile of
poo, poop=pile of poo, pray=folded hands, punch=oncoming fist, race car=racing car, rice=cooked rice, robot
face=robot, rugby=rugby football, running=person running, scale=balance scale, scales=balance scale, scooter=kick
scooter, scuba mask=diving mask, shirt=t-shirt, ski=skis, skiing=skier, skull crossbones=skull and crossbones,
smartphone=mobile phone, smiley=slightly smiling face, smoking=cigarette, sneaker=running shoe,
snowboarding=snowboarder, soccer=soccer ball, spades=spade suit, spock hand=vulcan salute, steam
locomotive=locomotive, surfing=person surfing, swimmer=person swimming, swimming=person swimming, swords=crossed
swords, table tennis=ping pong, tabler/book=open book, tabler/bow=bow and arrow, tabler/globe=globe stand,
tabler/school=graduation cap, tabler/waterpolo=person playing water polo, tea cup=hot beverage, tea=hot beverage,
thumb down=thumbs down, thumb up=thumbs up, tickets=admission tickets, tie=necktie, timer=stopwatch, tired=tired face,
toilet paper=roll of paper, tools=hammer and wrench, truck=delivery truck, ufo=flying saucer, unlock=unlocked,
utensils=fork and knife, vhs=videocassette, walking=person walking, wand=magic wand, water polo=person playing water
polo, weight lifter=person lifting weights, wheelchair=manual wheelchair, wine=wine glass, zap=high voltage
"""

# names that mean something else than the emoji or object of this name: brands, commands of a program, other things
NOT_DRAWN = frozenset(
    """
amazon, android, apple, back, blush, bow, chrome, clamp, cloudy, code, compression, cooking, cool, copy, cricket,
dart, disk, docker, edge, end, firefox, fog, fork, free, game-icons/mute, game-icons/orange, gem, goal,
heart-exclamation, heart-pulse, heartbeat, icon-park/anchor, icon-park/cook, icon-park/eyes, icon-park/fan,
icon-park/label, icon-park/lamp, icon-park/log, icon-park/magic-wand, icon-park/ring, icon-park/rock, icon-park/scale,
icon-park/turkey, icon-park/waterpolo, id, java, joker, kiss, label, lantern, leaves, link, lotion, mask, mdi/box,
mdi/lotion, mdi/scale, meta, mortar, mute, new, notes, on, opera, park, pin, police-car-light, ram, rosette, ruby,
rust, safari, seal, seat, share, shopping, slack, slide, snapchat, snow, soon, sound, spy, stars, storm, sunny, swift,
table, tabler/tools, tag, telegram, top, tv-off, twitter, up, wave, weightlifting, wind, windows, world-map, x
""".replace(",", " ").split()
)
