document.getElementById("send").onclick = async () => {
  const headers = {"content-type": "application/json"}, token = document.getElementById("token").value;
  if (token) headers.authorization = "Bearer " + token;
  const answer = await fetch("predict", {method: "POST", headers, body: document.getElementById("body").value});
  document.getElementById("answer").textContent = answer.status + "\n" + await answer.text();
}
