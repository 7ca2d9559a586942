"""What is said in the embedded corpus: household commands, digits, names, cities; fillers, silence.

Two small grammars of one shape, English and Mandarin, so that an experiment can be run in both.
"""

from __future__ import annotations

import numpy as np

from .corpus import DIGITS

# ---------------------------------------------------------------- English

# Most frequent first: words are drawn by Zipf's law, as words of real speech are, so that a pool is
# full of what is known already and has a long tail of what is not.
ROOMS = (
    "kitchen bedroom bathroom garage hallway office cellar garden attic nursery library balcony "
    "laundry studio pantry terrace"
).split()
DEVICES = (
    "light heater fan radio television door window blind oven alarm camera kettle printer speaker "
    "fridge projector toaster sprinkler vacuum shutter dishwasher thermostat"
).split()
ACTIONS = (
    "turn on", "turn off", "switch on", "switch off", "check", "open", "close", "lock", "start",
    "stop", "reset", "unlock", "dim", "pause", "repair", "disconnect",
)  # fmt: skip
NUMBERS = (
    "ten twenty thirty fifteen five forty fifty twelve eleven sixty ninety eighteen seventy "
    "thirteen eighty sixteen"
).split()
UNITS = "minutes seconds hours days weeks".split()
MUSIC = (
    "jazz rock opera folk techno blues reggae classical disco punk gospel swing ambient country"
).split()
DAYS = (
    "today tomorrow monday friday saturday sunday tuesday wednesday thursday tonight christmas "
    "easter"
).split()
CITIES = (
    "london paris boston chicago dublin madrid oslo vienna tokyo sydney glasgow berlin lisbon "
    "geneva toronto cairo warsaw athens denver havana helsinki istanbul kyoto lagos milan nairobi "
    "prague quebec reykjavik seoul singapore venice zurich bangkok bristol manchester"
).split()
FIRST = (
    "anna peter maria john susan david laura james emma thomas julia robert helen michael sophie "
    "daniel olivia george charlotte philip victoria martin beatrice oscar penelope frederick "
    "gwendolyn hector isabel quentin"
).split()
LAST = (
    "smith miller brown walker baker cooper fisher turner clark mason harrison bennett griffin "
    "whitfield carpenter douglas elliott fitzgerald hawkins jefferson kowalski lombardi mckenzie "
    "nakamura obrien patterson rodriguez sullivan thompson vaughan"
).split()
FILLERS = ("um", "uh", "okay", "well", "uh huh", "right", "hmm", "oh okay")


def _pick(rng: np.random.Generator, items) -> str:
    return items[int(rng.integers(len(items)))]


def _zipf(rng: np.random.Generator, items) -> str:
    """Draw an item with a probability that falls as 1 / rank."""
    weights = 1 / np.arange(1, len(items) + 1)
    return items[int(rng.choice(len(items), p=weights / weights.sum()))]


def _english(kind: str, rng: np.random.Generator) -> str:
    pick = lambda items: _zipf(rng, items)  # noqa: E731
    if kind == "filler":
        return pick(FILLERS)
    if kind == "digits":
        return " ".join(_pick(rng, DIGITS) for _ in range(int(rng.integers(3, 7))))
    if kind == "name":
        template = pick(("my name is {f} {l}", "call {f} {l} please", "this is {f} {l}",
                         "send a message to {f}", "invite {f} and {g}"))  # fmt: skip
        return template.format(f=pick(FIRST), l=pick(LAST), g=pick(FIRST))
    if kind == "city":
        template = pick(("what is the weather in {a}", "a ticket from {a} to {b}",
                         "when is the next train to {a}", "fly to {a} on {d}",
                         "how far is {a} from {b}"))  # fmt: skip
        return template.format(a=pick(CITIES), b=pick(CITIES), d=pick(DAYS))
    if kind == "command":
        template = pick(("{x} the {r} {v}", "{x} the {v} in the {r}", "set a timer for {n} {u}",
                         "set the {r} {v} to {n}", "play some {m} in the {r}", "please {x} the {v}",
                         "wake me up on {d} at {h}"))  # fmt: skip
        return template.format(
            x=pick(ACTIONS), r=pick(ROOMS), v=pick(DEVICES), n=pick(NUMBERS), u=pick(UNITS),
            m=pick(MUSIC), d=pick(DAYS), h=pick(DIGITS[1:]),
        )  # fmt: skip
    raise ValueError(f"unknown kind {kind!r}")


# ---------------------------------------------------------------- Mandarin, in characters

ROOMS_CMN = (
    "厨房 卧室 浴室 车库 走廊 书房 地下室 花园 阁楼 客厅 图书室 阳台 洗衣房 工作室 储藏室 露台"
).split()
DEVICES_CMN = (
    "灯 空调 风扇 收音机 电视 门 窗户 窗帘 烤箱 闹钟 相机 水壶 打印机 音箱 冰箱 投影仪 "
    "面包机 洒水器 吸尘器 百叶窗 洗碗机 恒温器"
).split()
ACTIONS_CMN = "打开 关闭 检查 启动 停止 锁上 重置 解锁 调暗 暂停 修理 断开".split()
NUMBERS_CMN = "十 二十 三十 十五 五 四十 五十 十二 十一 六十 九十 十八 七十 十三 八十 十六".split()
UNITS_CMN = "分钟 秒钟 小时 天 星期".split()
MUSIC_CMN = "爵士乐 摇滚乐 歌剧 民歌 电子乐 蓝调 古典乐 流行歌 乡村音乐 儿歌".split()
DAYS_CMN = "今天 明天 星期一 星期五 星期六 星期天 星期二 星期三 星期四 今晚 春节 中秋节".split()
CITIES_CMN = (
    "北京 上海 广州 深圳 成都 武汉 西安 南京 杭州 重庆 天津 苏州 青岛 大连 厦门 昆明 长沙 "
    "郑州 济南 沈阳 哈尔滨 兰州 拉萨 香港 台北 东京 伦敦 巴黎"
).split()
LAST_CMN = "王 李 张 刘 陈 杨 赵 黄 周 吴 徐 孙 胡 朱 高 林 何 郭 马 罗 梁 宋 郑 谢 韩 唐".split()
FIRST_CMN = (
    "伟 芳 娜 敏 静 丽 强 磊 军 洋 勇 艳 杰 娟 涛 明 超 秀英 霞 平 刚 桂英 文华 建国 志强 晓东 美玲"
).split()
FILLERS_CMN = "嗯 啊 好的 对 那个 是的 哦 行".split()
DIGITS_CMN = "零一二三四五六七八九"


def _mandarin(kind: str, rng: np.random.Generator) -> str:
    pick = lambda items: _zipf(rng, items)  # noqa: E731
    if kind == "filler":
        return pick(FILLERS_CMN)
    if kind == "digits":
        return "".join(_pick(rng, DIGITS_CMN) for _ in range(int(rng.integers(3, 7))))
    if kind == "name":
        template = pick(("我叫{l}{f}", "请打电话给{l}{f}", "这是{l}{f}", "给{l}{f}发一条短信",
                         "邀请{l}{f}和{m}{g}"))  # fmt: skip
        return template.format(
            l=pick(LAST_CMN), f=pick(FIRST_CMN), m=pick(LAST_CMN), g=pick(FIRST_CMN)
        )
    if kind == "city":
        template = pick(("{a}的天气怎么样", "买一张从{a}到{b}的票", "下一班去{a}的火车几点开",
                         "{d}飞往{a}", "{a}离{b}有多远"))  # fmt: skip
        return template.format(a=pick(CITIES_CMN), b=pick(CITIES_CMN), d=pick(DAYS_CMN))
    if kind == "command":
        template = pick(("{x}{r}的{v}", "请{x}{v}", "设一个{n}{u}的定时器", "把{r}的{v}调到{n}",
                         "在{r}放一点{m}", "{d}{h}点叫醒我"))  # fmt: skip
        return template.format(
            x=pick(ACTIONS_CMN), r=pick(ROOMS_CMN), v=pick(DEVICES_CMN), n=pick(NUMBERS_CMN),
            u=pick(UNITS_CMN), m=pick(MUSIC_CMN), d=pick(DAYS_CMN), h=pick(DIGITS_CMN[1:]),
        )  # fmt: skip
    raise ValueError(f"unknown kind {kind!r}")


# ---------------------------------------------------------------- both

_GRAMMARS = {"en": _english, "cmn": _mandarin}


def sentence(kind: str, rng: np.random.Generator, language: str = "en") -> str:
    """Draw a transcript of one kind in "en" or "cmn"; the empty string for silence."""
    return "" if kind == "silence" else _GRAMMARS[language](kind, rng)
