"""Text of several kinds, over which mean errors are taken: a mean needs more positions than a few prompts have."""

PASSAGES = (
    """The ferry left the harbour a little before six, while the lamps along the quay were still burning. There were
nine passengers on board that morning: a schoolmaster with a crate of books, two sisters who had not spoken to each
other since Easter, a man who sold rope, and a family of five who were moving to the island for good and had brought
their stove. Nobody had told them that the house already had one. The captain, who knew, said nothing, because he was
paid by the hundredweight. By the time the sun stood above the lighthouse the water had turned from black to grey, and
then to the dull green that it keeps all summer, and the youngest of the children asked how deep it was. "Deep enough,"
said her father. "That is not a number," said the schoolmaster, and he took out a piece of string.""",
    """A processor that multiplies a small matrix by a large one spends most of its time waiting. The numbers of the
large matrix lie in memory, and each of them is used once and then thrown away; while the next ones are on their way,
the arithmetic units have nothing to do. Engineers call such a program bound by bandwidth. There are three remedies.
The first is to use every number more than once, by working on several problems side by side. The second is to store
the numbers in fewer bits, which makes them arrive sooner, at the price of some accuracy. The third, and the one that is
most often forgotten, is not to read them at all: if the same question is asked again and again, it is cheaper to write
the answer down the first time and to look it up from then on.""",
    """"You said you would bring the key."
"I said I would bring a key."
She looked at the door, and then at him, and then at the thing in his hand, which was made of brass and about as long
as a thumb. "What does it open?"
"I have no idea. It was in my grandfather's coat. I thought that we could try it."
"On this door? Thomas, this is a bank."
"It is a very old coat," he said, but he put the key back into his pocket, and they walked on towards the market, where
the stalls were being set up and somebody was shouting the price of plums: four for a penny, and no picking.""",
    """def merge(left: list[int], right: list[int]) -> list[int]:
    \"\"\"Return all items of two sorted lists, sorted.\"\"\"
    merged, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]


def merge_sort(items: list[int]) -> list[int]:
    if len(items) < 2:
        return items
    middle = len(items) // 2
    return merge(merge_sort(items[:middle]), merge_sort(items[middle:]))
""",
    """Bread for two days. You need 500 g of flour, 350 ml of water, 10 g of salt and 3 g of dried yeast. Mix everything
in a large bowl until no dry flour is left; do not knead it. Cover the bowl and leave it for twelve hours, or overnight.
Heat the oven to 230 degrees with an iron pot inside. Turn the dough out onto a floured board, fold it four times, and
let it rest for half an hour. Put it into the hot pot, close the lid, and bake it for 30 minutes; then take the lid off
and bake it for another 15, until the crust is dark. Let it cool on a rack before you cut it. It keeps in a linen bag,
and on the second day it is better than on the first.""",
    """Il pleuvait depuis trois jours quand la lettre arriva. Elle venait de Lyon, elle avait mis une semaine, et
personne au village ne savait lire l'écriture de celui qui l'avait envoyée. Die Nachbarin, die als junge Frau in der
Stadt gearbeitet hatte, setzte ihre Brille auf und las sie zweimal, erst leise und dann laut. "Er schreibt, dass er im
Frühjahr kommt", sagte sie, "und dass wir ihm das Zimmer nach Süden geben sollen." No había otro cuarto en la casa, pero
nadie dijo nada, y en abril pintaron las paredes de blanco.""",
)
