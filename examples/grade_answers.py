"""Grade answers: does what a response ends with equal the gold answer? python examples/grade_answers.py"""

from reasoning_rl.api import grade_answer, grade_answers


def main():
    verdict = grade_answer(r"The two halves are $\boxed{\frac{1}{2}}$ each.", "0.5")
    print(verdict.status)
    several = grade_answers(["So 4 + 4 = 8\n#### 8", "#### 9"], ["8", "8"], benchmark="gsm8k")
    print([one.status for one in several])
    own = grade_answer("about 9", "8", grader=lambda response, answer: answer in response)
    print(own.status)
    return [verdict, *several, own]


if __name__ == "__main__":
    main()
