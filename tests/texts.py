"""Text that no model here was trained on, in several styles."""

FRESH = [
    "My grandfather kept bees behind the house, and in the spring he would talk to them before anyone else.",
    "The committee met twice that year, agreed on nothing, and was thanked for its work by the minister.",
    "Stir the flour into the melted butter, add the milk slowly, and do not stop until it thickens.",
    "It was raining when the two of them left the station, and neither had thought to bring a coat.",
    "What the measurements show is that the current grows with the square of the field, as predicted.",
    "Nobody knew who had painted the door green, but everyone agreed that it looked better than before.",
    "He sold the horse to a farmer from the next valley, who named it after a king and fed it too much.",
    "The second movement is slower and, to my ear, sadder; the flute waits for an answer that never comes.",
    "After the match the crowd went quietly home, and by midnight only the sweepers were left in the square.",
    "Ships used to stop here for water, and some of the sailors cut their names into the soft red stone.",
    "If you press too hard the lead will break, and if you press too lightly no one will be able to read it.",
    "A good map leaves out nearly everything, and the skill of the maker lies in knowing what to leave out.",
]
